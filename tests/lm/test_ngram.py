from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_kneser_ney import SlowKneserNey

from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.lm.arpa import read_arpa, write_arpa
from retort.lm.causal import BARRED, IMPOSSIBLE
from retort.lm.kneser_ney import FALLBACK, discounts_of, estimate
from retort.lm.ngram import NgramLM, NgramTable
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, UNKNOWN, CharacterTokenizer

LETTERS = CharacterTokenizer(list("abcde"))
WORDS = [each for each in range(LETTERS.size) if each not in BARRED]
CPU = torch.device("cpu")

Sentences = list[list[int]]


@pytest.fixture(scope="module")
def sentences() -> Sentences:
    """Of a language whose letters like some successors more than others; some sentences stand twice, `e` is rare."""
    draw = np.random.default_rng(3)
    likes = draw.dirichlet([0.3] * 4, size=4)
    found = []
    for _ in range(60):
        row = [int(draw.integers(4))]
        while draw.random() < 0.8:
            row.append(int(draw.choice(4, p=likes[row[-1]])))
        found.append([each + 4 for each in row])
    return [*found, *found[:7], [8, 4]]


def counted(
    sentences: Sentences, order: int, prune: Sequence[int] = (), repeats: Any = None
) -> tuple[NgramTable, list[Any]]:
    rows = [[EOS, *each, EOS] for each in sentences]
    lengths = np.array([len(row) for row in rows])
    repeats = np.ones(len(rows), np.int64) if repeats is None else repeats
    return estimate(np.concatenate(rows), lengths, repeats, LETTERS.size, order, prune)


def opened(table: NgramTable) -> NgramLM:
    return NgramLM(table, LETTERS, Normaliser(NormaliserConfig()))


def following(model: NgramLM, history: Sequence[int]) -> torch.Tensor:
    """Log-probabilities `(V,)` of what follows the start of a sentence and `history`."""
    state = model.start(1, CPU)
    for each in (EOS, *history):
        log_probs, state = model.step(state, torch.tensor([each]))
    return log_probs[0]


@pytest.mark.parametrize(
    ("order", "prune"), [(1, ()), (2, ()), (3, ()), (4, ()), (3, (1,)), (4, (0, 1)), (4, (0, 1, 3))]
)
def test_it_is_kneser_ney_by_its_definition(sentences: Sentences, order: int, prune: tuple[int, ...]) -> None:
    table, _ = counted(sentences, order, prune)
    model = opened(table)
    slow = SlowKneserNey(sentences, WORDS, order, lambda counts: discounts_of(np.array(counts)), prune)
    histories = [(), (4,), (7, 4), (4, 4, 5), (6, 5, 4, 7), (8,), (8, 4), (8, 8, 8), (UNKNOWN, 4)]
    for history in histories:
        expected = [slow.prob(word, (EOS, *history)) for word in WORDS]
        assert following(model, history)[WORDS].exp().tolist() == pytest.approx(expected, abs=1e-6), history
        assert (following(model, history)[BARRED] < IMPOSSIBLE / 2).all()
    known = sum(1 for gram in slow.seen if len(gram) > 1 and slow.known(gram))
    assert sum(table.counts) == LETTERS.size + known


def test_probabilities_of_every_history_sum_to_one(sentences: Sentences) -> None:
    model = opened(counted(sentences, 3, (0, 1))[0])
    for history in itertools.product(WORDS[1:], repeat=3):
        assert float(following(model, history).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_discounts_are_those_of_chen_and_goodman() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 7])
    share = 10 / (10 + 2 * 5)
    expected = (1 - 2 * share * 5 / 10, 2 - 3 * share * 3 / 5, 3 - 4 * share * 2 / 3)
    assert discounts_of(counts) == pytest.approx(expected)
    assert discounts_of(np.array([1, 2, 3])) == FALLBACK  # nothing was seen four times
    assert discounts_of(np.repeat([1, 2, 3, 4], [1, 1, 9, 9])) == FALLBACK  # a discount below nothing


def test_a_sentence_that_counts_twice_is_two_sentences(sentences: Sentences) -> None:
    twice, _ = counted([*sentences, *sentences[:5]], 3)
    repeated, _ = counted(sentences, 3, repeats=np.array([2] * 5 + [1] * (len(sentences) - 5)))
    assert np.array_equal(twice.keys, repeated.keys)
    assert np.allclose(twice.log_probs, repeated.log_probs)
    assert not np.allclose(twice.log_probs, counted(sentences, 3)[0].log_probs)


def test_steps_of_many_histories_are_those_of_one_and_scores_the_same(sentences: Sentences) -> None:
    model = opened(counted(sentences, 4, (0, 0, 1))[0])
    texts = [[4, 5, 6, 7, 4], [8, 8, 5, 4, 4], [7, 6, UNKNOWN, 4, 5]]
    state = model.start(3, CPU)
    columns = []
    previous = torch.full((3,), EOS)
    for place in range(6):
        log_probs, state = model.step(state, previous)
        for row, text in enumerate(texts):
            assert torch.equal(log_probs[row], following(model, text[:place]))
        previous = torch.tensor([[*text, EOS][place] for text in texts])
        columns.append(log_probs[torch.arange(3), previous])
        swapped = model.select(state, torch.tensor([2, 0, 0]))
        again, _ = model.step(swapped, previous[[2, 0, 0]])
        assert torch.equal(again, model.step(state, previous)[0][[2, 0, 0]])
    scores = model.score([*texts, [], [4]])
    torch.testing.assert_close(torch.stack(scores[:3]), torch.stack(columns, 1))
    assert [len(each) for each in scores[3:]] == [1, 2]
    assert torch.equal(scores[4], model.score([[4]])[0])


def test_sentences_shorter_than_the_order() -> None:
    table, discounts = counted([[4], [], [4]], 5)
    assert table.counts == [LETTERS.size, 3, 1, 0, 0]
    assert discounts == [FALLBACK] * 5
    slow = SlowKneserNey([[4], [], [4]], WORDS, 5, lambda counts: discounts_of(np.array(counts, np.int64)))
    for history in [(), (4,), (4, 4, 4, 4)]:
        expected = [slow.prob(word, (EOS, *history)) for word in WORDS]
        assert following(opened(table), history)[WORDS].exp().tolist() == pytest.approx(expected, abs=1e-6)


def test_after_the_end_another_sentence_starts(sentences: Sentences) -> None:
    model = opened(counted(sentences, 3)[0])
    assert torch.equal(following(model, [4, EOS]), following(model, []))


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_an_arpa_file_gives_the_same_probabilities(sentences: Sentences, tmp_path: Path, name: str) -> None:
    table, _ = counted(sentences, 3, (0, 1))
    write_arpa(table, LETTERS.symbols, tmp_path / name)
    again, left_out = read_arpa(tmp_path / name, LETTERS.symbols)
    assert left_out == 0
    assert again.counts == table.counts
    assert np.array_equal(again.keys, table.keys)
    assert np.allclose(again.log_probs, table.log_probs, atol=1e-5)
    assert np.allclose(again.backoffs, table.backoffs, atol=1e-5)
    for history in ([], [4], [8, 8], [5, 4, 4]):
        torch.testing.assert_close(
            following(opened(again), history), following(opened(table), history), atol=1e-4, rtol=0
        )


FOREIGN = """Made by hand.

\\data\\
ngram 1=6
ngram 2=4
ngram 3=1

\\1-grams:
-0.5 a -0.1
-0.7\tb\t-0.2
-1.0\tz\t-0.3
-0.9\t</s>
-99\t<s>\t-0.4
-2.0\t<unk>

\\2-grams:
-0.2\ta b\t-0.6
-0.3\t<s> a
-0.25\tb </s>
-0.1\tz a

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


def test_an_arpa_file_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "foreign.arpa"
    path.write_text(FOREIGN)
    table, left_out = read_arpa(path, LETTERS.symbols)
    assert left_out == 2  # those with z
    a, b, c = 4, 5, 6
    tens = {
        ((), a): -0.3,
        ((), b): -0.4 - 0.7,
        ((), c): -0.4 - 2.0,  # not in the file: as <unk>
        ((), EOS): -0.4 - 0.9,
        ((a,), b): -0.05,
        ((a, a), b): -0.2,  # `a a` is not known, and `a` has no backoff to pay
        ((a, b), EOS): -0.25 - 0.6,
        ((b,), a): -0.2 - 0.5,
        ((c,), a): -0.5,
    }
    model = opened(table)
    for (history, word), expected in tens.items():
        assert float(following(model, history)[word]) / np.log(10) == pytest.approx(expected, abs=1e-5)
    (score,) = model.score([[a, b]])
    assert (score / np.log(10)).tolist() == pytest.approx([-0.3, -0.05, -0.85], abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "", "contains no n-grams"),
        ("ngram 2=4", "ngram 2=5", "it has 4 n-grams of order 2, but its header states 5"),
        ("ngram 2=4", "ngram 2=many", "'many' is not a number"),
        ("\\end\\", "", "it is truncated"),
        ("-0.2\ta b\t-0.6", "-0.2\ta", "is not an n-gram of order 2"),
        ("-0.2\ta b\t-0.6", "low\ta b", "is not an n-gram of order 2"),
        ("-0.05\t<s> a b", "-0.05\tb a b", "n-grams of order 3 without their histories"),
    ],
)
def test_what_is_wrong_with_an_arpa_file_is_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "bad.arpa"
    text = FOREIGN.split("\\data\\")[0] if old == "\\data\\" else FOREIGN.replace(old, new)
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_arpa(path, LETTERS.symbols)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_arpa_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.arpa.gz").write_bytes(b"no gzip")
    for name in ("x.arpa.gz", "missing.arpa"):
        with pytest.raises(UserError, match="cannot be"):
            read_arpa(tmp_path / name, LETTERS.symbols)


def test_the_distributions_of_sentences_are_those_of_their_histories(sentences: Sentences) -> None:
    model = opened(counted(sentences, 3)[0])
    rows = [[4, 5, 6], [8, 4, 4]]
    found = model.distributions(torch.tensor([[EOS, *row] for row in rows]))
    for row, own in zip(rows, found, strict=True):
        for place in range(4):
            torch.testing.assert_close(own[place], following(model, row[:place]))
