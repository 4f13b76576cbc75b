"""Long recordings in pieces that a recogniser can take, cut where nobody speaks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d

HOP = 0.01
"""Seconds between two energies."""
PAUSE = 0.2
"""Seconds of quiet that are a pause."""
LONG_PAUSE = 2.0
"""Seconds of silence that are left out of the pieces ..."""
MARGIN = 0.3
"""... but for this much at either end, so that no weak consonant is lost."""
_SMOOTHING = 5
_RANGE = 40.0
_LEAST_RANGE = 10.0


class _Level(NamedTuple):
    energies: np.ndarray
    """`(F,)` dB, smoothed over 50 ms."""
    quiet: float
    """dB; below it is a pause."""
    silent: float
    """dB; below it is nothing but the noise of the room."""


def cut_at_pauses(samples: np.ndarray, sampling_rate: int, longest: float = 30.0) -> list[tuple[int, int]]:
    """Sample ranges `[start, end)` of at most `longest` seconds, ascending and without overlap.

    A recording of at most `longest` seconds is one piece, whole. In a longer one

    - silence of `LONG_PAUSE` seconds or more is left out, at the ends and in between, but for `MARGIN` at
      either side; everything else is in exactly one piece. The ranges index `samples`, so times of the whole
      recording are `start / sampling_rate` plus the time in the piece;
    - where that is still too long, a piece ends in the longest pause (`PAUSE` or more) of the second half of
      what it may hold, or else in the latest pause of the first half, or, where nobody pauses, at the
      quietest moment of the second half.

    What is quiet is judged by the recording's own levels: between its quietest 0.2 s (at most 40 dB below its
    speech) and its 95th percentile. Where these are less than 10 dB apart nothing counts as a pause.

    Args:
        samples: `(N,)`, finite.
        sampling_rate: Hz.
        longest: seconds, 1 or more.

    Raises:
        ValueError: `longest` below 1 s.
    """
    if longest < 1.0:
        raise ValueError(f"longest is {longest} s, must be 1 s or more")
    most = int(longest * sampling_rate)
    if len(samples) <= most:
        return [(0, len(samples))] if len(samples) else []
    hop = max(1, round(HOP * sampling_rate))
    level = _levels(samples, hop)
    pauses = [
        (first * hop, last * hop)
        for first, last in _runs(level.energies < level.quiet)
        if (last - first) * hop >= PAUSE * sampling_rate
    ]
    pieces: list[tuple[int, int]] = []
    for start, end in _islands(level, hop, len(samples), sampling_rate):
        while end - start > most:
            # A last piece of a few frames would be worth nothing.
            limit = min(start + most, end - sampling_rate // 2)
            cut = _best_pause(pauses, start, limit, sampling_rate)
            if cut is None:
                cut = _quietest(level.energies, start + (limit - start) // 2, limit, hop)
            pieces.append((start, cut))
            start = cut
        pieces.append((start, end))
    return pieces


def _levels(samples: np.ndarray, hop: int) -> _Level:
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    mean = frames.mean(axis=1, dtype=np.float64)
    power = np.einsum("ij,ij->i", frames, frames).astype(np.float64) / hop
    power = np.maximum(power - mean**2, 1e-12)  # without the offset that cheap sound cards add
    energies = 10 * np.log10(uniform_filter1d(power, _SMOOTHING, mode="nearest"))
    speech = float(np.percentile(energies, 95))
    window = round(PAUSE / HOP)
    floor = 10 * np.log10(max(float(uniform_filter1d(power, window, mode="nearest").min()), 1e-12))
    floor = max(floor, speech - _RANGE)
    distance = speech - floor
    if distance < _LEAST_RANGE:
        return _Level(energies, -np.inf, -np.inf)
    # Leaving something out asks for more certainty than cutting: a far speaker may be 20 dB below a near one.
    return _Level(energies, floor + 0.3 * distance, floor + min(6.0, 0.3 * distance))


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges in which `mask` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _islands(level: _Level, hop: int, length: int, rate: int) -> list[tuple[int, int]]:
    """What lies between the long silences, with margins; all of it when everything is silent."""
    margin = int(MARGIN * rate)
    islands: list[tuple[int, int]] = []
    start = 0
    for first, last in _runs(level.energies < level.silent):
        if (last - first) * hop < LONG_PAUSE * rate:
            continue
        end = first * hop + margin
        if first > 0:
            islands.append((start, end))
        start = length if last == len(level.energies) else last * hop - margin
    if start < length:
        islands.append((start, length))
    return islands or [(0, length)]


def _best_pause(pauses: list[tuple[int, int]], start: int, limit: int, rate: int) -> int | None:
    """Where to cut in `(start, limit)`, or None without a pause that begins after `start`."""
    half = start + (limit - start) // 2
    late: tuple[int, int] | None = None
    early: int | None = None
    for first, last in pauses:
        last = min(last, limit)
        if first <= start or last - first < PAUSE * rate:
            continue
        middle = (first + last) // 2
        if middle < half:
            early = middle
        elif late is None or last - first >= late[0]:
            late = (last - first, middle)
    return late[1] if late else early


def _quietest(energies: np.ndarray, first: int, last: int, hop: int) -> int:
    """Sample in the middle of the quietest frame between two samples; the latest of equals."""
    window = energies[first // hop + 1 : last // hop]
    best = len(window) - 1 - int(np.argmin(window[::-1]))
    return (first // hop + 1 + best) * hop + hop // 2
