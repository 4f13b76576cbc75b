"""Streaming conversion of a detector's scores to ranges of speech."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retort.audio.energy_vad import EnergyDetector
from retort.audio.filters import moving_mean
from retort.audio.silero_vad import SileroDetector
from retort.common.errors import UserError

GAP = 0.1
"""Seconds below the threshold that do not end a range of speech."""
SHORTEST = 0.1
"""Seconds of a range of speech; a shorter one is a click."""
CERTAIN = 1.0
"""Seconds from which a range is never considered a click or bang."""
WEAKEST = 30.0
"""Decibels below the level of a range of speech under which its edges are background."""
_HOP = 0.01
_SMOOTHING = 5
_PEAK_RANGE = 10.0
_PEAK_SECONDS = 0.15
_ATTACK = 0.08
_DECAY = 25.0
_SECOND_RISE = 4.0


class Detector(Protocol):
    """Returns a score for every `hop` samples of a recording, possibly with a delay of some seconds.

    All chunks except the last have `chunk` samples, so that the scores do not depend on how a recording is read.
    """

    hop: int
    chunk: int
    onset: float
    offset: float

    def accept(self, samples: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def finish(self) -> NDArray[np.float32]: ...


class Range(NamedTuple):
    """Samples `[start, end)` of a recording."""

    start: int
    end: int


def open_detector(kind: str, sampling_rate: int) -> Detector:
    """A detector for one recording; `none` takes the energy, by which long recordings are still cut.

    Raises:
        UserError: an unknown kind, or a package that it needs is not installed.
    """
    makers: dict[str, Callable[[int], Detector]] = {
        "energy": EnergyDetector, "silero": SileroDetector, "none": EnergyDetector
    }  # fmt: skip
    if kind not in makers:
        raise UserError(f"unknown speech detection '{kind}'", remedy=f"Choose one of {', '.join(makers)}")
    return makers[kind](sampling_rate)


def chunks(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """The same samples in arrays of `size` each, the last one shorter (never empty)."""
    held: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count >= size:
            joined = np.concatenate(held)
            last = count - count % size
            for start in range(0, last, size):
                yield joined[start : start + size]
            held, count = [joined[last:].copy()], count - last
    if count:
        yield np.concatenate(held)


class SpeechRanges:
    """Ranges of speech from a stream of scores.

    Args:
        detector: detector of the scores.
        sampling_rate: Hz.
        refine: trims a range by its samples; returns None if it is not speech.

    Attributes:
        known: number of samples with a score.
        begun: the current range that has not ended, if there is one.
    """

    def __init__(
        self, detector: Detector, sampling_rate: int, refine: Callable[[Range], Range | None]
    ) -> None:
        self._detector, self._rate, self._refine = detector, sampling_rate, refine
        self._gap = max(1, round(GAP * sampling_rate / detector.hop))
        self._frames = 0
        self._first: int | None = None
        self._last = 0

    @property
    def known(self) -> int:
        return self._frames * self._detector.hop

    @property
    def begun(self) -> Range | None:
        """A range that has not ended, up to its last frame of speech so far."""
        if self._first is None:
            return None
        return Range(self._first * self._detector.hop, self._last * self._detector.hop)

    @property
    def certain(self) -> bool:
        """Whether the range that has not ended is so long that it cannot be rejected."""
        return self.begun is not None and self.begun.end - self.begun.start >= CERTAIN * self._rate

    def add(self, scores: NDArray[np.float32]) -> list[Range]:
        """The ranges that end in the next `scores (N,)`."""
        ended: list[Range] = []
        onset, offset = self._detector.onset, self._detector.offset
        for score in scores.tolist():
            if score >= (onset if self._first is None else offset):
                if self._first is None:
                    self._first = self._frames
                self._last = self._frames + 1
            elif self._first is not None and self._frames - self._last >= self._gap:
                ended += self.finish()
            self._frames += 1
        return ended

    def finish(self) -> list[Range]:
        """The range that has not ended, ended now, if it is speech."""
        found = self.begun
        self._first = None
        if found is None or found.end - found.start < SHORTEST * self._rate:
            return []
        refined = self._refine(found)
        return [] if refined is None else [refined]


def frame_levels(samples: NDArray[np.float32], hop: int, smoothing: int) -> NDArray[np.float64]:
    """`(N // hop,)` dB of full scale, without a constant offset, the power averaged over `smoothing` frames."""
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop).astype(np.float64)
    power = frames.var(axis=1)
    return np.asarray(10 * np.log10(np.maximum(moving_mean(power, smoothing), 1e-20)))


def refined(found: Range, samples: NDArray[np.float32], sampling_rate: int) -> Range | None:
    """A range of speech without its edges that are far weaker than the rest of it; None where it is a bang.

    Args:
        samples: of the range, `(N,)`.
    """
    if found.end - found.start < CERTAIN * sampling_rate and is_bang(samples, sampling_rate):
        return None
    hop = max(1, round(_HOP * sampling_rate))
    levels = frame_levels(samples, hop, _SMOOTHING)
    if not len(levels):
        return None
    loud = np.flatnonzero(levels >= np.percentile(levels, 95) - WEAKEST)
    first, last = max(0, int(loud[0]) - 2), min(len(levels), int(loud[-1]) + 3)
    return Range(found.start + first * hop, found.end if last == len(levels) else found.start + last * hop)


def is_bang(samples: NDArray[np.float32], sampling_rate: int) -> bool:
    """Whether `samples (N,)` are a click, a clap or a slammed door: a sudden rise, then a decay without a second rise."""
    hop = max(1, round(_HOP * sampling_rate))
    levels = frame_levels(samples, hop, 3)
    if len(levels) < 3:
        return True
    peak = int(levels.argmax())
    decay = levels[peak:]
    decay = decay[: np.count_nonzero(np.maximum.accumulate(decay[::-1])[::-1] > levels[peak] - _DECAY)]
    risen = np.maximum.accumulate(decay[::-1])[::-1] - decay
    loud = np.count_nonzero(levels > levels[peak] - _PEAK_RANGE) * hop
    return bool(
        loud < _PEAK_SECONDS * sampling_rate
        and peak * hop < _ATTACK * sampling_rate
        and risen.max() < _SECOND_RISE
    )
