"""Tokens of a CTC path."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import NamedTuple


class Peak(NamedTuple):
    """A token of the best path."""

    label: int
    log_prob: float
    """Natural log-probability in the frame where it is most probable."""
    frame: int
    """The frame where it is most probable."""


def path_peaks(path: Sequence[int], log_probs: Sequence[float], skipped: Collection[int]) -> list[Peak]:
    """The tokens of a path, without repeats and without `skipped`, which includes the blank.

    Args:
        path: label of each frame.
        log_probs: of these labels; may be longer.
    """
    found = []
    for label, run in groupby(range(len(path)), key=path.__getitem__):
        if label not in skipped:
            frame = max(run, key=log_probs.__getitem__)
            found.append(Peak(label, log_probs[frame], frame))
    return found
