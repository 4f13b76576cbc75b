from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_searches import assert_same, build, distribution, fire, row_of, saying

from retort.common.errors import UserError
from retort.decoding.cif import beam_fired
from retort.decoding.fusion import Fusion, Summed, open_fitting_lm
from retort.decoding.hypothesis import Hypothesis
from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent
from retort.text.tokenizers import BLANK, EOS, PAD, CharacterTokenizer
from tiny_lms import TableLM

LETTERS = CharacterTokenizer(list("ab"))
"""Six ids, three of which can be emitted besides EOS."""


def letters(size: int) -> CharacterTokenizer:
    return CharacterTokenizer([chr(ord("a") + index) for index in range(size - 4)])


@torch.inference_mode()
def exhaustive(student: CifStudent, fired: FiredTokens, lm: TableLM, weight: float) -> list[Hypothesis]:
    """Every hypothesis of one utterance: the student's costs by its uncached decoder, the model's by `score`.

    What is after EOS costs the student its best token and the model the mean of what was recognised.
    """
    count, size = int(fired.lengths[0]), student.decoder.vocabulary.out_features
    speakable = [token for token in range(size) if token not in (BLANK, PAD, EOS)]
    output = [[*each, EOS] for length in range(count) for each in product(speakable, repeat=length)]
    output += [list(each) for each in product(speakable, repeat=count)]
    found = []
    for ids in output:
        history, own = [EOS], []
        for step in range(count):
            _, logits = student.decoder(torch.tensor([history]), fired.embeddings[:, : step + 1])
            log_probs = logits[0, -1].float().log_softmax(-1)
            log_probs[[BLANK, PAD]] = float("-inf")
            history.append(ids[step] if step < len(ids) else int(log_probs.argmax()))
            own.append(float(log_probs[history[-1]]))
        length = len(ids) - (EOS in ids)
        lm_scores = lm.score([ids[:length]])[0][: len(ids)].tolist()
        mean = sum(lm_scores) / max(len(lm_scores), 1)
        score = sum(own) + weight * (sum(lm_scores) + mean * (count - len(ids)))
        ends = fired.fire_times[0, :length].tolist()
        found.append(Hypothesis(ids[:length], own[:length], ends, score=score))
    return sorted(found, key=lambda each: -each.score)


@given(fires=st.integers(0, 4), weight=st.sampled_from([0.0, 0.3, 1.5]), seed=st.integers(0, 10**6))
@settings(max_examples=8)
def test_a_beam_wide_enough_finds_all_there_is(fires: int, weight: float, seed: int) -> None:
    student, fired, lm = build(6, seed), fire([fires], seed), TableLM(LETTERS, seed)
    everything = exhaustive(student, fired, lm, weight)
    assert_same(beam_fired(student, fired, 4**4, Fusion(lm, weight))[0], everything)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    beam=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20)
def test_batch_and_alone_and_without_weight(lengths: list[int], beam: int, seed: int) -> None:
    student, fired, lm = build(16, seed), fire(lengths, seed), TableLM(letters(16), seed)
    together = beam_fired(student, fired, beam, Fusion(lm, 0.7))
    for row, found in enumerate(together):
        assert_same(found, beam_fired(student, row_of(fired, row), beam, Fusion(lm, 0.7))[0])
    assert beam_fired(student, fired, beam, Fusion(lm, 0.0)) == beam_fired(student, fired, beam)


def test_a_hypothesis_that_ends_with_its_fires_has_the_plain_sum() -> None:
    student, fired, lm = build(6, 3), fire([4], 3), TableLM(LETTERS)
    found = beam_fired(student, fired, 4**4, Fusion(lm, 0.6))[0]
    ending = [each for each in found if len(each.ids) == 3]
    assert len(ending) == 27
    for each in ending:
        ids = each.ids
        with torch.inference_mode():
            _, logits = student.decoder(torch.tensor([[EOS, *ids]]), fired.embeddings)
        own = sum(each.log_probs) + float(logits[0, 3].float().log_softmax(-1)[EOS])
        assert each.score == pytest.approx(own + 0.6 * float(lm.score([ids])[0].sum()), abs=1e-4)


def test_breaking_off_early_saves_nothing() -> None:
    """The student leaves little to the end, but less than the language model takes for a long sentence."""
    student, fired = saying([distribution(t5=0.5, t6=0.49, end=0.01)] * 20)
    lm = TableLM(letters(16), sharpness=0.0)
    each = float(lm.table[0, EOS])
    assert 19 * math.log(0.5) + math.log(0.01) + 0.5 * each > 20 * math.log(0.5) + 0.5 * 20 * each
    best = beam_fired(student, fired, 10, Fusion(lm, 0.5))[0][0]
    assert best.ids == [5] * 20
    assert best.score == pytest.approx(20 * (math.log(0.5) + 0.5 * each), rel=1e-5)


def test_fusion_with_a_better_model_changes_the_result() -> None:
    student, fired = saying([distribution(t5=0.5, t6=0.49, end=0.01)] * 4)
    lm = TableLM(letters(16))
    lm.table = torch.full_like(lm.table, -5.0)
    lm.table[:, 6] = -0.1
    assert beam_fired(student, fired, 4, Fusion(lm, 0.0))[0][0].ids == [5] * 4
    assert beam_fired(student, fired, 4, Fusion(lm, 0.2))[0][0].ids == [6] * 4
    assert beam_fired(student, fired, 1, Fusion(lm, 0.2))[0][0].ids == [6] * 4


def test_several_scorers_add_up() -> None:
    student, fired = build(16, 1), fire([4, 6], 1)
    first, second = TableLM(letters(16), 1), TableLM(letters(16), 2)
    halves = Summed([Fusion(first, 0.2), Fusion(first, 0.3)])
    for one, other in zip(
        beam_fired(student, fired, 5, halves), beam_fired(student, fired, 5, Fusion(first, 0.5))
    ):
        assert_same(one, other)
    both = beam_fired(student, fired, 5, Summed([Fusion(first, 0.5), Fusion(second, 0.5)]))
    assert both != beam_fired(student, fired, 5, Fusion(first, 0.5))


@pytest.mark.parametrize(
    ("symbols", "words"),
    [("ab", "6 tokens, the student 7"), ("acb", "id 5 is 'c', for the student 'b'")],
)
def test_other_pieces_than_the_students(symbols: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = TableLM(CharacterTokenizer(list(symbols)))
    monkeypatch.setattr("retort.decoding.fusion.open_causal_lm", lambda folder, device: lm)
    with pytest.raises(UserError, match=words) as caught:
        open_fitting_lm("exp/lm", CharacterTokenizer(list("abc")), "cpu")
    assert "exp/lm" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert open_fitting_lm("exp/lm", lm.tokenizer, "cpu") is lm
