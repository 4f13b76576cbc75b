"""Segmentation of a recording for a recogniser: silence is removed, long speech is cut at pauses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retort.audio.speech import Detector, Range, SpeechRanges, chunks, frame_levels, refined

LONGEST = 30.0
"""Default maximum length of a segment in seconds."""
PAUSE = 0.2
"""Seconds without speech that are a pause, at which a long segment may be cut."""
LONG_PAUSE = 1.5
"""Seconds without speech that are removed ..."""
MARGIN = 0.3
"""... except for this margin at either end, which preserves weak consonants."""
UNJUDGED = 1.5
"""Seconds: a shorter recording without detected speech is kept, because its background cannot be estimated ..."""
STEADY = 3.0
"""... unless its level varies by fewer decibels, as for noise."""
_TAIL = 0.5
_HOP = 0.01
_SMOOTHING = 5


@dataclass(frozen=True)
class Segment:
    """A part of a recording that is recognised separately.

    Attributes:
        start: first sample in the recording.
        samples: `(N,)` float32.
        speech: ranges of speech in the recording; ascending, within the segment.
    """

    start: int
    samples: NDArray[np.float32]
    speech: list[Range] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Sample of the recording after the segment."""
        return self.start + len(self.samples)


def segments(
    blocks: Iterable[NDArray[np.float32]],
    sampling_rate: int,
    detector: Detector,
    longest: float = LONGEST,
    *,
    keep_silence: bool = False,
) -> Iterator[Segment]:
    """Segments of at most `longest` seconds, ascending and without overlap, computed while the recording is read.

    - Silence at the ends and within, of `LONG_PAUSE` or more, is removed except for `MARGIN` at either side of the
      speech; so are bangs and sounds too short for speech. A recording without speech has no segment.
    - Longer speech is cut in the longest pause (`PAUSE` or more) of the second half of
      the maximum length, or else in the latest pause of the first half, or, if there is none, at the quietest
      moment of the second half.

    The segments do not depend on how the recording is divided into blocks. At most about 40 seconds more than `longest`
    are in memory.

    Args:
        blocks: `(n,)` float32 each, finite, of one channel.
        sampling_rate: Hz.
        detector: a new detector.
        longest: seconds, 1 or more.
        keep_silence: remove nothing; the segments cover the recording.

    Raises:
        ValueError: `longest` below 1 s.
    """
    if longest < 1.0:
        raise ValueError(f"longest is {longest} s, must be 1 s or more")
    return _Segmenter(sampling_rate, detector, longest, keep_silence).run(blocks)


class _Held:
    """The samples of a recording that may still be needed."""

    def __init__(self) -> None:
        self.start = 0
        self._samples = np.zeros(0, np.float32)

    @property
    def end(self) -> int:
        return self.start + len(self._samples)

    def add(self, samples: NDArray[np.float32]) -> None:
        self._samples = np.concatenate([self._samples, samples])

    def drop(self, before: int) -> None:
        """Discard samples; copies are rare."""
        if before - self.start > len(self._samples) // 2:
            self._samples = self._samples[before - self.start :].copy()
            self.start = before

    def get(self, start: int, end: int) -> NDArray[np.float32]:
        return self._samples[start - self.start : end - self.start]


class _Segmenter:
    def __init__(self, rate: int, detector: Detector, longest: float, keep_silence: bool) -> None:
        self.rate, self.detector, self.keep = rate, detector, keep_silence
        self.most = int(longest * rate)
        self.margin = int(MARGIN * rate)
        self.long_pause = int(LONG_PAUSE * rate)
        self.held = _Held()
        self.ranges = SpeechRanges(detector, rate, self._refined)
        self.speech: list[Range] = []
        self.done = 0
        """Number of samples that are in a segment, or removed."""

    def run(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Segment]:
        for chunk in chunks(blocks, self.detector.chunk):
            self.held.add(chunk)
            self.speech += self.ranges.add(self.detector.accept(chunk))
            yield from self._advance()
        self.speech += self.ranges.add(self.detector.finish())
        self.speech += self.ranges.finish()
        length = self.held.end
        self.speech = [Range(max(start, self.done), end) for start, end in self.speech if end > self.done]
        if not self.done and not self.speech and self._may_be_speech():
            self.speech = [Range(0, length)]
        yield from self._finish()

    def _may_be_speech(self) -> bool:
        """Whether a complete recording without detected speech may be speech."""
        if not 0 < self.held.end < UNJUDGED * self.rate:
            return False
        samples = self.held.get(0, self.held.end)
        levels = frame_levels(samples, max(1, round(_HOP * self.rate)), _SMOOTHING)
        return not len(levels) or float(np.ptp(np.percentile(levels, [5, 95]))) >= STEADY

    def _refined(self, found: Range) -> Range | None:
        held = Range(max(found.start, self.held.start), min(found.end, self.held.end))
        return refined(held, self.held.get(*held), self.rate) if held.start < held.end else None

    def _so_far(self) -> list[Range]:
        begun = self.ranges.begun
        if begun is None or not self.ranges.certain or begun.end <= self.done:
            return self.speech
        return [*self.speech, begun]

    def _advance(self) -> Iterator[Segment]:
        """The segments that are final."""
        while True:
            speech, known = self._so_far(), self.ranges.known
            stretch = self._stretch(speech)
            begun = self.ranges.begun
            after = known if begun is None or self.ranges.certain else begun.start
            closed = len(stretch) < len(speech) or (
                bool(stretch) and not self.keep and after - stretch[-1].end >= self.long_pause
            )
            start = self._start(stretch) if stretch or self.keep else known
            end = stretch[-1].end + self.margin if closed else known
            if closed and end - start <= self.most:
                yield self._cut(start, end, end, stretch)
            elif (stretch or self.keep) and end - start > self.most + (0 if closed else _TAIL * self.rate):
                yield self._cut_within(start, end if closed else None, speech, stretch)
            else:
                first = [start] if stretch or self.keep else [known, *([begun.start] if begun else [])]
                self.held.drop(max(self.held.start, min(first) - self.margin - self.rate))
                return

    def _finish(self) -> Iterator[Segment]:
        """The remaining segments at the end of the recording."""
        length = self.held.end
        while self.speech or (self.keep and self.done < length):
            stretch = self._stretch(self.speech)
            start = self._start(stretch)
            end = length if self.keep else min(length, stretch[-1].end + self.margin)
            if end - start <= self.most:
                yield self._cut(start, end, end, stretch)
            else:
                yield self._cut_within(start, end, self.speech, stretch)

    def _stretch(self, speech: list[Range]) -> list[Range]:
        """The first ranges of speech, up to a long pause."""
        for place, (one, other) in enumerate(itertools.pairwise(speech), 1):
            if not self.keep and other.start - one.end >= self.long_pause:
                return speech[:place]
        return speech

    def _start(self, stretch: list[Range]) -> int:
        return self.done if self.keep else max(self.done, stretch[0].start - self.margin)

    def _cut(self, start: int, end: int, done: int, speech: list[Range]) -> Segment:
        """The segment from `start` to `end`; speech after `done` belongs to the next one."""
        self.done = done
        inside = [Range(max(one.start, start), min(one.end, end)) for one in speech if one.start < done]
        self.speech = [Range(max(one.start, done), one.end) for one in self.speech if one.end > done]
        return Segment(start, self.held.get(start, end).copy(), inside)

    def _cut_within(self, start: int, end: int | None, speech: list[Range], stretch: list[Range]) -> Segment:
        """The first segment of a stretch that is too long; `end` is None while it continues."""
        limit = start + self.most
        if end is not None:
            limit = min(
                limit, end - int(_TAIL * self.rate)
            )  # avoids a last segment of a few frames
        cut = self._best_pause(stretch, start, limit)
        if cut is None:
            cut = self._quietest(start + (limit - start) // 2, limit)
            return self._cut(start, cut, cut, stretch)
        before = [one for one in stretch if one.end <= cut]
        last = cut if self.keep else min(cut, before[-1].end + self.margin)
        return self._cut(start, last, cut, stretch)

    def _best_pause(self, stretch: list[Range], start: int, limit: int) -> int | None:
        """Middle of the pause to cut in, or None without one between two ranges of speech."""
        half = start + (limit - start) // 2
        late: tuple[int, int] | None = None
        early: int | None = None
        for one, other in itertools.pairwise(stretch):
            first, last = one.end, min(other.start, limit)
            if first <= start or last - first < PAUSE * self.rate:
                continue
            middle = (first + last) // 2
            if middle < half:
                early = middle
            elif late is None or last - first >= late[0]:
                late = (last - first, middle)
        return late[1] if late else early

    def _quietest(self, first: int, last: int) -> int:
        """Sample in the middle of the quietest 10 ms between two samples; the latest of equals."""
        hop = max(1, round(_HOP * self.rate))
        levels = frame_levels(self.held.get(first, last), hop, _SMOOTHING)[1:-1]
        best = len(levels) - int(np.argmin(levels[::-1]))
        return first + best * hop + hop // 2
