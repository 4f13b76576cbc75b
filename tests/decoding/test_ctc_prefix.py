from __future__ import annotations

import math
from itertools import groupby, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.decoding.ctc import Alignments, CtcPrefixes
from retort.text.tokenizers import BLANK

CLASSES = 4


def noise(frames: int, seed: int, sharpness: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(frames, CLASSES, generator=generator, dtype=torch.float64)).log_softmax(
        -1
    )


def sequences(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence, all alignments tried."""
    sums: dict[tuple[int, ...], float] = {}
    for path in product(range(CLASSES), repeat=len(log_probs)):
        ids = tuple(label for label, _ in groupby(path) if label != BLANK)
        sums[ids] = sums.get(ids, 0.0) + math.exp(
            sum(float(log_probs[t, label]) for t, label in enumerate(path))
        )
    return sums


def walk(prefixes: CtcPrefixes, ids: list[int], rows: int) -> Alignments:
    found = prefixes.start()
    for label in ids:
        nothing = torch.zeros(rows, 1, dtype=torch.int64)
        found = prefixes.advance(found, nothing, nothing + label)
    return found


@given(
    frames=st.integers(1, 5),
    ids=st.lists(st.integers(1, CLASSES - 1), max_size=3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_the_share_of_all_sequences_that_begin_so(frames: int, ids: list[int], seed: int) -> None:
    log_probs = noise(frames, seed)
    real = sequences(log_probs)
    prefixes = CtcPrefixes(log_probs[None], torch.tensor([frames]))
    at = walk(prefixes, ids, 1)
    assert float(prefixes.whole(at).exp()) == pytest.approx(real.get(tuple(ids), 0.0), abs=1e-12)
    extended = prefixes.extended(at).exp()[0, 0]
    for label in range(1, CLASSES):
        begun = (*ids, label)
        expected = sum(share for each, share in real.items() if each[: len(begun)] == begun)
        assert float(extended[label]) == pytest.approx(expected, abs=1e-12)


def test_several_prefixes_of_a_batch_are_each_alone() -> None:
    log_probs = torch.stack([noise(9, 0, 3.0), noise(9, 1, 3.0)])
    log_probs[1, 6:] = torch.nan
    lengths = torch.tensor([9, 6])
    prefixes = CtcPrefixes(log_probs, lengths)
    parents, chosen = torch.tensor([[0, 0, 0], [0, 0, 0]]), torch.tensor([[1, 2, 3], [3, 1, 2]])
    first = prefixes.advance(prefixes.start(), parents, chosen)
    order, then = torch.tensor([[2, 0, 0], [1, 1, 2]]), torch.tensor([[3, 1, 2], [1, 3, 3]])
    second = prefixes.advance(first, order, then)
    whole, extended = prefixes.whole(second), prefixes.extended(second)
    for row, length in enumerate((9, 6)):
        single = CtcPrefixes(log_probs[row : row + 1, :length], lengths[row : row + 1])
        for column in range(3):
            at = walk(single, [int(chosen[row, order[row, column]]), int(then[row, column])], 1)
            torch.testing.assert_close(whole[row, column], single.whole(at)[0, 0])
            torch.testing.assert_close(extended[row, column, 1:], single.extended(at)[0, 0, 1:])


def test_as_exact_as_the_recursion_over_a_long_utterance() -> None:
    """Frame by frame in the log domain; the cumulative sums must not lose what is improbable."""
    log_probs = noise(600, 7, 8.0)
    prefixes = CtcPrefixes(log_probs[None], torch.tensor([600]))
    ids = [int(each) for each in torch.randint(1, CLASSES, (60,), generator=torch.Generator().manual_seed(0))]
    at = walk(prefixes, ids, 1)
    blank = torch.cat((torch.zeros(1, dtype=torch.float64), log_probs[:, BLANK].cumsum(0)))
    label, last = torch.full_like(blank, -math.inf), BLANK
    for each in ids:
        ways = blank if each == last else torch.logaddexp(blank, label)
        blank, label = torch.full_like(blank, -math.inf), torch.full_like(blank, -math.inf)
        for t in range(1, 601):
            label[t] = torch.logaddexp(label[t - 1], ways[t - 1]) + log_probs[t - 1, each]
            blank[t] = torch.logaddexp(label[t - 1], blank[t - 1]) + log_probs[t - 1, BLANK]
        last = each
    torch.testing.assert_close(at.label[0, 0], label, atol=1e-8, rtol=1e-10)
    torch.testing.assert_close(at.blank[0, 0], blank, atol=1e-8, rtol=1e-10)


def test_more_labels_than_frames_are_impossible_and_not_nan() -> None:
    prefixes = CtcPrefixes(noise(2, 0)[None], torch.tensor([2]))
    at = walk(prefixes, [1, 2, 3, 3], 1)
    assert prefixes.whole(at).item() == -math.inf
    assert (prefixes.extended(at)[0, 0, 1:] == -math.inf).all()
