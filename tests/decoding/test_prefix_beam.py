from __future__ import annotations

import math
from itertools import groupby, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.decoding.ctc import Prefix, prefix_beam
from retort.decoding.fusion import Fusion
from retort.text.tokenizers import BLANK, EOS, PAD, CharacterTokenizer
from tiny_lms import TableLM

LETTERS = CharacterTokenizer(list("abc"))  # ids 4 to 6
WIDE = 10**4


def noise(frames: int, vocabulary: int, seed: int, sharpness: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(frames, vocabulary, generator=generator)).log_softmax(-1)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in groupby(path) if label != BLANK)


def everything(
    log_probs: Tensor, lm: TableLM | None = None, lm_weight: float = 0.0, length_weight: float = 0.0
) -> dict[tuple[int, ...], tuple[float, float]]:
    """Every label sequence with its log-probability, all alignments tried, and its score."""
    vocabulary = [label for label in range(log_probs.shape[1]) if label not in (PAD, EOS)]
    sums: dict[tuple[int, ...], float] = {}
    for path in product(vocabulary, repeat=len(log_probs)):
        total = math.exp(sum(float(log_probs[frame, label]) for frame, label in enumerate(path)))
        sums[collapsed(path)] = sums.get(collapsed(path), 0.0) + total
    found = {}
    for ids, total in sums.items():
        score = math.log(total)
        if lm is not None:
            output = sum(float(lm.after(ids[:place])[each]) for place, each in enumerate([*ids, EOS]))
            score += lm_weight * output + length_weight * len(ids)
        found[ids] = math.log(total), score
    return found


def assert_all(found: list[Prefix], expected: dict[tuple[int, ...], tuple[float, float]]) -> None:
    assert len(found) == len(expected)
    assert {tuple(each.ids) for each in found} == set(expected)
    for each in found:
        assert (each.log_prob, each.score) == pytest.approx(expected[tuple(each.ids)], abs=1e-6)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)


@given(frames=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_a_beam_that_holds_all_sums_over_all_alignments(frames: int, seed: int) -> None:
    log_probs = noise(frames, 6, seed)
    (found,) = prefix_beam(log_probs[None], torch.tensor([frames]), WIDE)
    assert_all(found, everything(log_probs))


@given(frames=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_with_a_language_model_its_end_and_a_weight_of_length(frames: int, seed: int) -> None:
    log_probs = noise(frames, 7, seed)
    lm = TableLM(LETTERS, seed)
    (found,) = prefix_beam(log_probs[None], torch.tensor([frames]), WIDE, Fusion(lm, 0.7), 0.9)
    assert_all(found, everything(log_probs, lm, 0.7, 0.9))


def test_the_best_labels_are_not_those_of_the_best_path() -> None:
    """Graves 2006: the blank path is the most probable one, the label the most probable sequence."""
    log_probs = torch.full((1, 2, 5), 1e-9)
    log_probs[..., BLANK], log_probs[..., 4] = 0.6, 0.4
    (found,) = prefix_beam(log_probs.log(), torch.tensor([2]), 4)
    assert found[0].ids == [4]
    assert math.exp(found[0].log_prob) == pytest.approx(0.4 * 0.4 + 2 * 0.6 * 0.4, rel=1e-5)


def test_a_label_twice_needs_a_blank_between() -> None:
    log_probs = noise(3, 5, 0)
    (found,) = prefix_beam(log_probs[None], torch.tensor([3]), WIDE)
    twice = next(each for each in found if each.ids == [4, 4])
    assert twice.log_prob == pytest.approx(
        float(log_probs[0, 4] + log_probs[1, BLANK] + log_probs[2, 4]), abs=1e-6
    )


def test_a_weight_of_length_makes_hypotheses_longer() -> None:
    log_probs = noise(8, 7, 3)[None]
    sizes = [
        len(prefix_beam(log_probs, torch.tensor([8]), 20, Fusion(TableLM(LETTERS), 1.0), weight)[0][0].ids)
        for weight in (-3.0, 0.0, 3.0)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    beam=st.integers(1, 9),
    scored=st.booleans(),
    filler=st.sampled_from([0.0, float("nan")]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_an_utterance_gives_the_same_alone_and_in_any_batch(
    lengths: list[int], beam: int, scored: bool, filler: float, seed: int
) -> None:
    most = max(lengths) + 1
    log_probs = torch.full((len(lengths), most, 7), filler)
    for row, length in enumerate(lengths):
        log_probs[row, :length] = noise(length, 7, seed + row, 2.0)
    scorer = Fusion(TableLM(LETTERS), 0.5) if scored else None
    together = prefix_beam(log_probs, torch.tensor(lengths), beam, scorer, 0.3)
    for row, length in enumerate(lengths):
        (alone,) = prefix_beam(log_probs[row : row + 1, :length], torch.tensor([length]), beam, scorer, 0.3)
        assert [each.ids for each in together[row]] == [each.ids for each in alone]
        assert [each.score for each in together[row]] == pytest.approx(
            [each.score for each in alone], abs=1e-9
        )
        assert len({tuple(each.ids) for each in alone}) == len(alone) >= 1
        assert not {BLANK, PAD, EOS} & {label for each in alone for label in each.ids}


def test_a_narrow_beam_never_finds_more_than_there_is() -> None:
    for seed in range(10):
        log_probs = noise(4, 7, seed)
        real = everything(log_probs)
        for beam in (1, 2, 5):
            for each in prefix_beam(log_probs[None], torch.tensor([4]), beam)[0]:
                assert each.log_prob <= real[tuple(each.ids)][0] + 1e-9
