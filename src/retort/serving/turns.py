"""Turns of speech in a stream of samples: server-side voice activity detection of a Realtime session."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retort.audio.recent_speech import RecentScores
from retort.audio.speech import Range, SpeechRanges, frame_levels, refined

TICK = 0.2
"""Seconds between decisions."""
WINDOW = 6.0
"""Seconds of past audio by which speech and background are distinguished."""
LONGEST_TURN = 30.0
"""Seconds after which a turn is ended at its quietest moment of the last `CUT` seconds."""
CUT = 3.0
_HOP = 0.01

Samples: TypeAlias = NDArray[np.float32]


class Started(NamedTuple):
    """Speech began; `start` is the first sample of the turn in the stream."""

    start: int


class Spoken(NamedTuple):
    """Samples of the current turn, which follow those before; with `streamed` only."""

    samples: Samples


class Stopped(NamedTuple):
    """A turn from `start` to `end`, exclusive, of the stream ended; `samples` are empty if they were :class:`Spoken`
    or, in a stream, have no speech."""

    start: int
    end: int
    samples: Samples


Event: TypeAlias = Started | Spoken | Stopped


class Turns:
    """Finds turns with the project's detectors, applied to the last `WINDOW` seconds as if the audio ended there.

    Args:
        sampling_rate: Hz.
        vad: `energy` or `silero`.
        silence: seconds without speech that end a turn.
        prefix: seconds before the speech that belong to the turn.
        streamed: give out the samples of a turn while it lasts. It then has no maximum duration, and its last samples
            may be after its end.

    Attributes:
        position: number of samples so far.
        start: first sample of the current turn; None without one.
    """

    def __init__(
        self,
        sampling_rate: int,
        vad: str = "energy",
        silence: float = 0.5,
        prefix: float = 0.3,
        streamed: bool = False,
    ) -> None:
        self._rate, self._scores = sampling_rate, RecentScores(vad, sampling_rate)
        self._silence, self._prefix = round(silence * sampling_rate), round(prefix * sampling_rate)
        self._refined: dict[Range, Range | None] = {}  # of the last decision
        self._held: Samples = np.zeros(0, np.float32)
        self._first = 0  # position of the first held sample
        self._ended = 0  # end of the last turn
        self._streamed, self._given = streamed, 0  # end of the samples that were given out
        self._next = round(TICK * sampling_rate)
        self.position = 0
        self.start: int | None = None

    def add(self, samples: Samples) -> list[Event]:
        """What happened in the next samples `(n,)`."""
        found: list[Event] = []
        while len(samples):
            part, samples = samples[: self._next - self.position], samples[self._next - self.position :]
            self._held = np.concatenate([self._held, part])
            self.position += len(part)
            tick = self.position == self._next  # whatever the sizes of the parts
            if tick:
                self._next += round(TICK * self._rate)
                found += self._decide()
            found += self._spoken()
            if tick:
                self._trim()
        return found

    def current(self) -> Samples:
        """The samples of the current turn so far; without a turn, those since the last one that are still held."""
        return self._cut(self._ended if self.start is None else self.start, self.position)

    def take(self) -> Stopped:
        """End the current turn, or take all held samples since the last one.

        A stream recognises whatever it is given, so it gets no samples in which there is no speech.
        """
        start = max(self._first, self._ended) if self.start is None else self.start
        silent = self._streamed and self.start is None and not any(each.end > start for each in self._ranges())
        taken = self._stop(start, self.position)
        return taken._replace(samples=taken.samples[:0]) if silent else taken

    def _spoken(self) -> list[Event]:
        if not self._streamed or self.start is None or self._given >= self.position:
            return []
        given, self._given = self._given, self.position
        return [Spoken(self._cut(given, self.position))]

    def _decide(self) -> list[Event]:
        spoken = [each for each in self._ranges() if each.end > self._ended]
        if self.start is None:
            # A range of the past that only now differs from its background is not the start of a turn.
            recent = [each for each in spoken if each.end > self.position - self._silence]
            if not recent:
                return []
            self.start = self._given = max(self._ended, self._first, recent[0].start - self._prefix)
            return [Started(self.start), *self._decide()]
        end = max((each.end for each in spoken), default=self.start)
        if self.position - end >= self._silence:
            rest = self._spoken()
            return [*rest, self._stop(self.start, min(self.position, max(end, self.start) + self._silence))]
        if not self._streamed and self.position - self.start >= LONGEST_TURN * self._rate:
            return [self._stop(self.start, self._quietest())]
        return []

    def _ranges(self) -> list[Range]:
        """Ranges of speech in the window, in samples of the stream."""
        window = self._held[-round(WINDOW * self._rate) :]
        offset = self.position - len(window)
        before, self._refined = self._refined, {}

        def refine(each: Range) -> Range | None:
            """As :func:`refined`, which is computed once for a range of the stream."""
            key = Range(each.start + offset, each.end + offset)
            kept = before[key] if key in before else refined(key, window[each.start : each.end], self._rate)
            if key.end <= self.position:  # all its samples are there
                self._refined[key] = kept
            return None if kept is None else Range(kept.start - offset, kept.end - offset)

        detector, scores = self._scores(window, offset)
        ranges = SpeechRanges(detector, self._rate, refine)
        found = ranges.add(scores) + ranges.finish()
        return [Range(each.start + offset, min(each.end + offset, self.position)) for each in found]

    def _quietest(self) -> int:
        start = self.position - round(CUT * self._rate)
        hop = max(1, round(_HOP * self._rate))
        return start + int(frame_levels(self._cut(start, self.position), hop, 5).argmin()) * hop

    def _stop(self, start: int, end: int) -> Stopped:
        given = self._streamed and self.start is not None
        self.start, self._ended = None, end
        return Stopped(start, end, self._cut(end, end) if given else self._cut(start, end))

    def _cut(self, start: int, end: int) -> Samples:
        return self._held[max(0, start - self._first) : end - self._first].copy()

    def _trim(self) -> None:
        """Drop what neither a turn nor the window needs."""
        needed = self.position - round(WINDOW * self._rate)
        needed = needed if self.start is None or self._streamed else min(needed, self.start)
        if needed > self._first:
            self._held, self._first = self._held[needed - self._first :], needed
