from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.config.schema import NormaliserConfig
from retort.decoding.factory import open_search
from retort.decoding.fusion import Fusion
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.token_search import TransducerSearch
from retort.decoding.transducer import transducer_beam, transducer_greedy
from retort.nn.transducer import transducer_loss
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent
from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, EOS, PAD, SPECIAL, CharacterTokenizer, Tokenizer
from tiny_lms import TableLM
from tiny_students import unscored
from tiny_transducers import build, make_encoded


def tokenizer_of(size: int) -> Tokenizer:
    tokenizer = CharacterTokenizer.train(["abcdefghijklmnop"[: size - len(SPECIAL)]])
    assert tokenizer.size == size
    return tokenizer


def table_fusion(size: int, weight: float = 0.7) -> Fusion:
    return Fusion(TableLM(tokenizer_of(size)), weight)


def symbol_table(student: TransducerStudent, hidden: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Log-probabilities `(T, U + 1, V)` of one utterance, by the network that reads whole sequences."""
    predicted = student.predictor(torch.tensor([ids], dtype=torch.int64), EOS)
    _, logits = student.joiner(student.joiner.project_encoder(hidden)[:, None], student.joiner.project_predictor(predicted))
    return logits.log_softmax(-1)


@torch.inference_mode()
def exhaustive(
    student: TransducerStudent, encoded: Encoded, lm: Fusion | None, length_weight: float = 0.0
) -> dict[tuple[int, ...], float]:
    """The probability of everything that one utterance may be with at most one token a frame, path by path."""
    frames, size = int(encoded.lengths[0]), student.joiner.output.out_features
    speakable = [token for token in range(size) if token not in (BLANK, PAD, EOS)]
    found = {}
    for count in range(frames + 1):
        for ids in product(speakable, repeat=count):
            table = symbol_table(student, encoded.hidden[0, :frames], ids)
            paths = []
            for places in combinations(range(frames), count):
                score, emitted = 0.0, 0
                for frame in range(frames):
                    speaks = frame in places
                    score += float(table[frame, emitted, ids[emitted] if speaks else BLANK])
                    emitted += speaks
                paths.append(score)
            lm_score = 0.0
            if lm is not None:
                (each,) = lm.lm.score([list(ids)])
                lm_score = lm.weight * float(each.double().sum())
            found[ids] = float(torch.tensor(paths).double().logsumexp(0)) + lm_score + length_weight * count
    return found


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
@pytest.mark.parametrize("fused", [False, True], ids=["student", "lm"])
@given(frames=st.integers(1, 4), seed=st.integers(0, 10**6), length_weight=st.sampled_from([0.0, 1.3, -0.4]))
@settings(max_examples=5)
def test_a_beam_wide_enough_finds_all_there_is(
    predictor: str, fused: bool, frames: int, seed: int, length_weight: float
) -> None:
    student, encoded = build(6, predictor, seed), make_encoded([frames], seed)
    scorer = table_fusion(6) if fused else None
    expected = exhaustive(student, encoded, scorer, length_weight)
    (found,) = transducer_beam(student, encoded, 1000, scorer, length_weight)
    assert {tuple(each.ids): each.score for each in found} == pytest.approx(expected, abs=1e-5)
    assert len(found) == len(expected) == sum(3**count for count in range(frames + 1))
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_its_scores_are_the_loss_of_a_monotonic_transducer() -> None:
    student, encoded = build(6), make_encoded([5], seed=3)
    (found,) = transducer_beam(student, encoded, 1000)
    for each in found[::20]:
        ids = each.ids
        with torch.inference_mode():
            logits = symbol_table(student, encoded.hidden[0], tuple(ids))[None]
        lengths = torch.tensor([5]), torch.tensor([len(ids)])
        loss = transducer_loss(logits, torch.tensor([ids], dtype=torch.int64), *lengths, monotonic=True)
        assert each.score == pytest.approx(-float(loss), abs=1e-6)
    assert len(found) == sum(3**count for count in range(6))


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    predictor=st.sampled_from(["stateless", "lstm"]),
)
@settings(max_examples=20)
def test_a_beam_of_one_is_greedy(lengths: list[int], seed: int, predictor: str) -> None:
    student, encoded = build(9, predictor, seed), make_encoded(lengths, seed)
    greedy = transducer_greedy(student, encoded)
    for own, (best,) in zip(greedy, transducer_beam(student, encoded, 1)):
        assert own.ids == best.ids
        assert own.ends == best.ends
        assert own.log_probs == pytest.approx(best.log_probs)
        assert own.score == pytest.approx(best.score)


@pytest.mark.parametrize("weight", [-2.5, -4.0])
def test_a_weight_of_length_is_what_others_take_from_blanks(weight: float) -> None:
    student, encoded = build(9, seed=1), make_encoded([15], seed=4)
    ((found, *_),) = transducer_beam(student, encoded, 1, length_weight=weight)
    ids: list[int] = []
    with torch.inference_mode():
        for frame in range(15):
            column = symbol_table(student, encoded.hidden[0], tuple(ids))[frame, -1]
            column[[PAD, EOS]] = -math.inf
            column[BLANK] -= weight
            if (token := int(column.argmax())) != BLANK:
                ids.append(token)
    assert found.ids == ids
    (plain,) = transducer_greedy(student, encoded)
    assert len(ids) < len(plain.ids)


@pytest.mark.parametrize("symbols", [1, 2, 4])
def test_greedy_takes_the_best_symbol_at_every_step(symbols: int) -> None:
    student, encoded = build(9, seed=1), make_encoded([15], seed=4)
    (found,) = transducer_greedy(student, encoded, symbols)
    ids: list[int] = []
    ends, score = [], 0.0
    with torch.inference_mode():
        for frame in range(15):
            for _ in range(symbols):
                column = symbol_table(student, encoded.hidden[0], tuple(ids))[frame, -1]
                column[[PAD, EOS]] = -math.inf
                token = int(column.argmax())
                score += float(column[token])
                if token == BLANK:
                    break
                ids.append(token)
                ends.append(frame + 1.0)
    assert found.ids == ids
    assert found.ends == ends
    assert found.score == pytest.approx(score, abs=1e-5)
    assert len(ids) > 3
    assert (len(set(ends)) < len(ends)) == (symbols > 1)


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
@pytest.mark.parametrize(("beam", "fused"), [(1, False), (1, True), (4, False), (4, True)])
def test_padding_and_batching_change_nothing(predictor: str, beam: int, fused: bool) -> None:
    student, scorer = build(9, predictor, seed=6), table_fusion(9) if fused else None
    lengths = [9, 0, 14, 5]
    together, dirty = make_encoded(lengths, 3), make_encoded(lengths, 3, filler=1e3)
    batched = [transducer_beam(student, each, beam, scorer) for each in (together, dirty)]
    paths = [transducer_greedy(student, each) for each in (together, dirty)]
    assert batched[0] == batched[1]
    assert paths[0] == paths[1]
    for row, length in enumerate(lengths):
        alone = Encoded(together.hidden[row : row + 1, :length], torch.tensor([length]))
        (expected,) = transducer_beam(student, alone, beam, scorer)
        assert [each.ids for each in batched[0][row]] == [each.ids for each in expected]
        assert [each.score for each in batched[0][row]] == pytest.approx([each.score for each in expected])
        (own,) = transducer_greedy(student, alone)
        assert paths[0][row].ids == own.ids
    assert [each.ids for each in batched[0][1]] == [[]]


def test_hypotheses_are_all_different_and_well_formed() -> None:
    student, encoded = build(16, seed=2), make_encoded([30, 22], seed=2)
    for found, length in zip(transducer_beam(student, encoded, 8), (30, 22)):
        assert len(found) == 8
        assert len({tuple(each.ids) for each in found}) == 8
        for each in found:
            emitted = each
            assert len(emitted.ids) == len(emitted.log_probs) == len(emitted.ends) > 0
            assert not {BLANK, PAD, EOS} & set(emitted.ids)
            assert sorted(set(emitted.ends)) == emitted.ends  # one token a frame
            assert emitted.ends[0] >= 1.0
            assert emitted.ends[-1] <= length
            assert emitted.starts == [end - 1.0 for end in emitted.ends]


def test_times_and_confidences_are_those_of_the_tokens_on_their_path() -> None:
    student, encoded = build(8, seed=5), make_encoded([8], seed=5)
    for each in transducer_beam(student, encoded, 5, table_fusion(8))[0]:
        emitted = each
        with torch.inference_mode():
            table = symbol_table(student, encoded.hidden[0], tuple(emitted.ids))
        own = [
            float(table[int(end) - 1, place, token])
            for place, (end, token) in enumerate(zip(emitted.ends, emitted.ids))
        ]
        assert emitted.log_probs == pytest.approx(own, abs=1e-6)


def test_equal_hypotheses_do_not_crowd_out_others() -> None:
    """Joined before the beam is cut: with two places there are two different hypotheses."""
    student = build(5)
    with torch.no_grad():
        student.joiner.output.weight.zero_()
        student.joiner.output.bias.copy_(torch.tensor([0.5, 1e-9, 1e-9, 0.1, 0.4]).log())
    (found,) = transducer_beam(student, make_encoded([3]), 2)
    assert [each.ids for each in found] == [[4], [4, 4]]
    # [4] in any of three frames; after the second, [4] has 2 * 0.4 * 0.5 and [] 0.5 ** 2: [4, 4] begins again.
    assert math.exp(found[0].score) == pytest.approx(3 * 0.4 * 0.5**2, rel=1e-6)
    assert math.exp(found[1].score) == pytest.approx(2 * 0.4 * 0.5 * 0.4, rel=1e-6)


class Counting:
    """Says nothing, but counts who was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def start(self, rows: int, device: torch.device) -> Any:
        return [[]] * rows

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Any]:
        after = [[*own, token] for own, token in zip(state, previous.tolist())]
        self.asked += after
        return torch.zeros(len(after), 9), after

    def select(self, state: Any, rows: Tensor) -> Any:
        return [state[row] for row in rows.tolist()]

    def join(self, states: Any) -> Any:
        return [row for state in states for row in state]


def test_a_scorer_is_asked_of_every_sequence_once() -> None:
    student, encoded, scorer = build(9, seed=1), make_encoded([10, 10], seed=4), Counting()
    found = transducer_beam(student, encoded, 4, scorer)
    plain = transducer_beam(student, encoded, 4)
    assert [[unscored(each) for each in own] for own in found] == [
        [unscored(each) for each in own] for own in plain
    ]
    asked = [tuple(each) for each in scorer.asked]
    assert all(each[0] == EOS for each in asked)
    assert len(asked) < 4 * 2 * 10
    last = {(EOS, *each.ids) for own in found for each in own}
    assert last <= set(asked)


class Judged:
    """Likes long sentences."""

    parameters = 3

    def score(self, sentences: Any) -> list[float]:
        return [10.0 * len(each) for each in sentences]


def test_the_search_follows_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    student, encoded, tokenizer = build(9, seed=1), make_encoded([10, 7], seed=4), tokenizer_of(9)
    lm = TableLM(tokenizer)
    monkeypatch.setattr("retort.decoding.token_search.open_fitting_lm", lambda *_: lm)
    monkeypatch.setattr("retort.decoding.token_search.open_rescoring_lm", lambda *_: Judged())
    normalise = Normaliser(NormaliserConfig())

    def search(before: TransducerSearch | None = None, **options: Any) -> TransducerSearch:
        opened = open_search(student, tokenizer, normalise, DecodingOptions(**options), before)
        assert isinstance(opened, TransducerSearch)
        return opened

    plain = search()
    assert plain(encoded) == [[each] for each in transducer_greedy(student, encoded)]
    student.config.transducer.symbols = 3
    assert plain(encoded) == [[each] for each in transducer_greedy(student, encoded, 3)]
    assert search(beam=4)(encoded) == transducer_beam(student, encoded, 4)
    for beam in (1, 4):
        weighed = search(beam=beam, length_weight=1.5)
        assert weighed(encoded) == transducer_beam(student, encoded, beam, None, 1.5)
    fused = search(beam=4, lm="x", lm_weight=0.7)
    assert fused(encoded) == transducer_beam(student, encoded, 4, Fusion(lm, 0.7))
    assert fused.parameters["lm"] == lm.parameters
    again = search(fused, beam=2, lm="x", lm_weight=0.1)
    assert again.scorer is not None
    assert again.scorer.lm is lm
    longest: list[list[Hypothesis]] = search(beam=4, rescore="x", rescore_weight=1.0)(encoded)
    for found in longest:
        assert len(found[0].ids) == max(len(each.ids) for each in found)
    assert len(plain.ctc_hypotheses(encoded) or []) == 2
    student.config.ctc_weight = 0.0
    assert plain.ctc_hypotheses(encoded) is None
