"""Streams of audio divided into utterances, whatever library computes them.

An utterance ends where the end symbol is recognised, where no token was recognised for `pause` seconds after a token,
or after `longest` seconds. All decisions are made after whole chunks, so the result does not depend on the pieces in
which samples arrive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retort.audio.samples import as_wave
from retort.common.errors import UserError
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.transcriber import Transcriber
from retort.decoding.transcript import TimedText, Transcript, join_transcripts, time_hypothesis

LONGEST = 28.0
"""Maximum duration of an utterance in seconds; it limits the memory."""
PAUSE = 1.2
"""An utterance ends when this many seconds after its last token there is no other."""


@dataclass(frozen=True)
class Partial:
    """What was recognised so far.

    Attributes:
        text: text of the utterance in progress.
        words: its words, with times in seconds of the stream.
        stable_until: seconds of the stream; words that end before do not change any more. The last word may still
            become longer.
        finished: utterances that ended since the last result.
    """

    text: str
    words: list[TimedText]
    stable_until: float
    finished: list[Transcript]


@dataclass(frozen=True)
class StreamOptions:
    """Latency and division of a stream.

    Attributes:
        chunk: frames of the encoder's output in a chunk.
        left: frames before a chunk that self-attention is limited to; 0 selects the largest of the training.
        longest: maximum duration of an utterance in seconds.
        pause: seconds without a token that end an utterance; 0: only `longest` and the end of the stream end one.
    """

    chunk: int
    left: int = 0
    longest: float = LONGEST
    pause: float = PAUSE


@dataclass
class Emitted:
    """Tokens so far.

    Attributes:
        ids, log_probs, ends: as in :class:`retort.decoding.hypothesis.Hypothesis`.
        starts: likewise; empty if a token starts at the end of the previous one.
        seconds: duration of the audio of the utterance that each token needed.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def hypothesis(self) -> Hypothesis:
        """A copy as a hypothesis."""
        starts = list(self.starts) if self.starts or not self.ids else None
        return Hypothesis(list(self.ids), list(self.log_probs), list(self.ends), starts, sum(self.log_probs))


class Tokens(ABC):
    """Tokens of one utterance.

    Attributes:
        emitted: tokens so far; they do not change any more.
        over: whether the end symbol was recognised; later frames give no tokens.
    """

    def __init__(self) -> None:
        self.emitted = Emitted()
        self.over = False

    @abstractmethod
    def finish(self, seconds: float) -> None:
        """Decode what remains at the end of the utterance, whose audio has this duration."""

    def current(self) -> Hypothesis:
        """The hypothesis so far."""
        return self.emitted.hypothesis()

    def size(self) -> int:
        """Number of values that are kept for later tokens."""
        return len(self.emitted.ids)


class Chunked(Protocol):
    """Samples, features and the encoder's state of one utterance.

    Attributes:
        seconds: duration of the audio that the chunks so far depend on, look-ahead included.
    """

    seconds: float

    @property
    def feature_frames(self) -> int:
        """Feature frames, of 10 ms, of the chunks so far."""

    def accept(self, samples: NDArray[np.floating]) -> None:
        """Add samples `(N,)`."""

    def end(self) -> None:
        """There are no more samples: the rest is the last chunk."""

    def waiting(self) -> int:
        """Number of frames in the next chunk if it is complete, otherwise 0."""

    def kept(self) -> int:
        """Number of values that are kept."""


E = TypeVar("E", bound=Chunked)
T = TypeVar("T", bound=Tokens)


class Stream(Generic[E, T]):
    """One stream: the utterance in progress, and the samples after its last chunk.

    Attributes:
        encoder, tokens: of the utterance in progress.
        finished: utterances that ended since they were last asked for.
        emissions: words of the utterances that have ended, each with the second of the stream at which the audio that
            it depends on had arrived.
        ended: whether there are no more samples.
    """

    def __init__(self, owner: Streams[E, T]) -> None:
        self.owner = owner
        self.finished: list[Transcript] = []
        self.emissions: list[tuple[TimedText, float]] = []
        self.ended = False
        self._rest: NDArray[Any] = np.zeros(0, np.float32)
        self._start = self._consumed = 0
        self._partial: Partial | None = None  # the result so far, until it changes
        self._open()

    def _open(self) -> None:
        self.encoder, self.tokens = self.owner.utterance()
        self.encoder.accept(self._rest)

    def accept(self, samples: NDArray[np.floating]) -> None:
        """Add samples `(N,)`."""
        if self.ended:
            raise UserError("the stream has ended", remedy="Open another one")
        self._rest = np.concatenate((self._rest, samples))
        self.encoder.accept(samples)

    def settle(self) -> None:
        """After the tokens of a chunk: end the utterance where it ends."""
        done, self._partial = self._samples_done(), None
        self._rest = self._rest[done - self._consumed :].copy()
        self._consumed = done
        if not self.ended and self._is_over():
            self.close()
            self._start += done
            self._open()

    def end(self) -> None:
        """There are no more samples."""
        self.encoder.end()
        self.ended, self._partial = True, None

    def close(self) -> None:
        """End the utterance in progress."""
        self._partial = None
        self.tokens.finish(self.encoder.seconds)
        transcript = self._timed()
        self.emissions += self._emissions(transcript)
        if transcript.text:
            self.finished.append(transcript)
        self._consumed = 0

    def partial(self) -> Partial:
        """The result so far; finished utterances are given out once. It is the same object until it changes."""
        if self._partial is None or self._partial.finished:
            self._partial = self._result()
        return self._partial

    def _result(self) -> Partial:
        finished, self.finished = self.finished, []
        until = (self._start + self._samples_done()) / self.owner.transcriber.sampling_rate
        if self.ended:
            return Partial("", [], until, finished)
        current = self._timed()
        until = current.words[-1].start if current.words else until
        return Partial(current.text, current.words, until, finished)

    def size(self) -> int:
        """Number of values that are kept."""
        return self._rest.size + self.encoder.kept() + self.tokens.size()

    def _samples_done(self) -> int:
        return round(self.encoder.feature_frames * self.owner.shift)

    def _is_over(self) -> bool:
        options, transcriber = self.owner.options, self.owner.transcriber
        seconds = self._samples_done() / transcriber.sampling_rate
        if seconds + self.owner.chunk_seconds > options.longest:
            return True
        if not options.pause:
            return False
        last = self.tokens.current().ends[-1:]
        silence = seconds - last[0] * transcriber.frame_seconds if last else 0.0
        return self.tokens.over or silence >= options.pause

    def _timed(self) -> Transcript:
        owner, rate = self.owner.transcriber, self.owner.transcriber.sampling_rate
        frames = self.encoder.feature_frames * self.owner.shift / rate
        hypothesis = self.tokens.current()
        return time_hypothesis(hypothesis, owner.tokenizer, owner.frame_seconds, self._start / rate, frames)

    def _emissions(self, transcript: Transcript) -> list[tuple[TimedText, float]]:
        start, emitted = self._start / self.owner.transcriber.sampling_rate, self.tokens.emitted
        words = self.owner.transcriber.tokenizer.words(emitted.ids)
        return [(timed, start + emitted.seconds[word.last]) for timed, word in zip(transcript.words, words)]


class Streams(ABC, Generic[E, T]):
    """Streams of one model, whose chunks are computed together where they are complete at the same time.

    Args:
        transcriber: the model.
        options: latency and division.

    Attributes:
        shift: samples of a feature frame.
        chunk_seconds: duration of a chunk.
    """

    def __init__(self, transcriber: Transcriber, options: StreamOptions) -> None:
        self.transcriber, self.options = transcriber, options
        self.shift = transcriber.sampling_rate / 100
        self.chunk_seconds = options.chunk * transcriber.frame_seconds
        self._streams: dict[int, Stream[E, T]] = {}
        self._next = 0

    @abstractmethod
    def utterance(self) -> tuple[E, T]:
        """The state at the start of an utterance."""

    @abstractmethod
    def compute(self, ready: Sequence[Stream[E, T]]) -> None:
        """Compute the next chunk of these streams, which must be complete, including its tokens."""

    def open(self) -> int:
        """Add a stream; returns its number."""
        number, self._next = self._next, self._next + 1
        self._streams[number] = Stream(self)
        return number

    def drop(self, number: int) -> None:
        """Remove a stream."""
        del self._streams[number]

    def advance(self, pieces: Mapping[int, object], ending: Collection[int] = ()) -> dict[int, Partial]:
        """Add samples to some streams, and end some, which may be others.

        Args:
            pieces: samples by the number of the stream: `(N,)` of one channel at the model's sampling rate, as
                :meth:`retort.decoding.transcriber.Transcriber.transcribe_samples` accepts them; N may be 0.
            ending: numbers of streams that have no more samples: what remains is recognised, and the last utterance
                ends. Those that have ended before are left out.

        Returns:
            Results of these streams.
        """
        for number, piece in pieces.items():
            self._streams[number].accept(one_channel(piece, "samples"))
        last = [stream for number in ending if not (stream := self._streams[number]).ended]
        for stream in last:
            stream.end()
        while ready := [each for each in self._streams.values() if each.encoder.waiting()]:
            self.compute(ready)
            for stream in ready:
                stream.settle()
        for stream in last:
            stream.close()
        return {number: self._streams[number].partial() for number in {**pieces, **dict.fromkeys(ending)}}

    def accept(self, pieces: Sequence[object]) -> list[Partial]:
        """Add samples to every stream, in the order in which they were opened."""
        return list(self.advance(dict(zip(self._streams, pieces, strict=True))).values())

    def finish(self, rows: Sequence[int] | None = None) -> list[Partial]:
        """End streams, by default all; returns the results of all."""
        numbers = list(self._streams)
        ending = numbers if rows is None else [numbers[row] for row in rows]
        found = self.advance({}, ending)
        return [found[number] if number in found else self._streams[number].partial() for number in numbers]

    def hypotheses(self) -> list[Hypothesis]:
        """Tokens so far of the utterance in progress, or of the last one, of each stream."""
        return [stream.tokens.current() for stream in self._streams.values()]

    def state_size(self) -> int:
        """Number of values that are kept for all streams."""
        return sum(stream.size() for stream in self._streams.values())

    def emissions(self, number: int = 0) -> list[tuple[TimedText, float]]:
        """The words of the utterances of a stream that have ended, each with the second of the stream at which the
        audio that it depends on had arrived."""
        return self._streams[number].emissions


class OneStream:
    """One stream of a model.

    Args:
        streams: without any stream.
    """

    def __init__(self, streams: Streams[Any, Any]) -> None:
        self._streams, self._number = streams, streams.open()

    def accept(self, samples: object) -> Partial:
        """Add samples `(N,)` of one channel at the recogniser's sampling rate."""
        return self._streams.advance({self._number: samples})[self._number]

    def finish(self) -> Partial:
        """Recognise what remains; the stream ends."""
        return self._streams.advance({}, [self._number])[self._number]

    def state_size(self) -> int:
        """See :meth:`Streams.state_size`."""
        return self._streams.state_size()

    @property
    def emissions(self) -> list[tuple[TimedText, float]]:
        """See :meth:`Streams.emissions`."""
        return self._streams.emissions(self._number)


def one_channel(samples: object, where: str) -> NDArray[np.floating]:
    """Samples of any supported type as `(N,)` float32 or float64; N may be 0.

    Raises:
        UserError: the type or shape is not supported.
    """
    if isinstance(samples, np.ndarray) and samples.dtype in (np.float32, np.float64) and samples.ndim == 1:
        return samples
    empty = hasattr(samples, "__len__") and not len(samples)
    return np.zeros(0, np.float32) if empty else as_wave(samples, where)


def joined(finished: Sequence[Transcript], transcriber: Transcriber) -> Transcript:
    """The transcript of a stream from those of its utterances."""
    return join_transcripts(finished, transcriber.separator)
