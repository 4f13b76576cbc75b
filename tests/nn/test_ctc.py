from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retort.nn.ctc import greedy_peaks, label_frames


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != 0]


def runs_of(path: tuple[int, ...]) -> list[list[int]]:
    """Frames of each label of a path."""
    groups, frame = [], 0
    for label, group in itertools.groupby(path):
        size = len(list(group))
        if label != 0:
            groups.append(list(range(frame, frame + size)))
        frame += size
    return groups


def slow(log_probs: Tensor, labels: list[int]) -> list[int] | None:
    """All paths tried."""
    frames, classes = log_probs.shape
    fitting = [path for path in itertools.product(range(classes), repeat=frames) if collapsed(path) == labels]
    if not fitting:
        return None
    best = max(fitting, key=lambda path: sum(float(log_probs[t, label]) for t, label in enumerate(path)))
    return [
        max(run, key=lambda t: float(log_probs[t, label]))
        for run, label in zip(runs_of(best), labels, strict=True)
    ]


@given(st.integers(1, 6), st.lists(st.integers(1, 2), max_size=4), st.integers(0, 10**6))
def test_the_best_path_is_the_best_of_all(frames: int, labels: list[int], seed: int) -> None:
    log_probs = torch.randn(frames, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    found, valid = label_frames(
        log_probs[None], torch.tensor([frames]), torch.tensor([labels], dtype=torch.int64),
        torch.tensor([len(labels)]),
    )  # fmt: skip
    expected = slow(log_probs, labels)
    if expected is None:
        assert not valid.any()
    else:
        assert valid.all()
        assert found[0].tolist() == expected


def test_a_batch_is_its_utterances() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.randn(3, 12, 5, generator=generator).log_softmax(-1)
    labels = torch.randint(1, 5, (3, 4), generator=generator)
    lengths, label_lengths = torch.tensor([12, 7, 2]), torch.tensor([4, 2, 3])
    log_probs[1, 7:] = torch.nan  # whatever is after the lengths
    found, valid = label_frames(log_probs, lengths, labels, label_lengths)
    assert valid.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    for row in range(2):
        count, size = int(label_lengths[row]), int(lengths[row])
        alone, _ = label_frames(
            log_probs[row : row + 1, :size], lengths[row : row + 1], labels[row : row + 1, :count],
            label_lengths[row : row + 1],
        )  # fmt: skip
        assert found[row, :count].tolist() == alone[0].tolist()
        assert int(alone.max()) < size


@pytest.mark.parametrize("count", [0, 3])
def test_no_labels_and_another_blank(count: int) -> None:
    log_probs = torch.full((1, 9, 4), -9.0)
    log_probs[..., 3] = 0.0
    for place in range(count):
        log_probs[0, 2 * place + 1] = torch.tensor([-9.0, 0.0, -9.0, -9.0])
    labels = torch.ones(1, count, dtype=torch.int64)
    found, valid = label_frames(log_probs, torch.tensor([9]), labels, torch.tensor([count]), blank=3)
    assert found[0].tolist() == [1, 3, 5][:count]
    assert bool(valid.all())


def slow_peaks(log_probs: Tensor, skipped: set[int]) -> list[tuple[int, int]]:
    """Label and frame of each, from left to right."""
    found: list[tuple[int, int]] = []
    before = -1
    for frame, row in enumerate(log_probs):
        label = int(row.argmax())
        if label != before and label not in skipped:
            found.append((label, frame))
        elif label not in skipped and float(row[label]) > float(log_probs[found[-1][1], label]):
            found[-1] = (label, frame)
        before = label
    return found


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 10**6))
def test_peaks_of_the_best_path(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(len(lengths), 9, 5, generator=generator)).log_softmax(-1)
    for row, length in enumerate(lengths):
        log_probs[row, length:] = torch.nan
    found = greedy_peaks(log_probs, torch.tensor(lengths), (0, 2))
    for row, length in enumerate(lengths):
        expected = slow_peaks(log_probs[row, :length], {0, 2})
        assert [(peak.label, peak.frame) for peak in found[row]] == expected
        for peak in found[row]:
            assert peak.log_prob == pytest.approx(float(log_probs[row, peak.frame, peak.label]))
