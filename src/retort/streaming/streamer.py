"""Recognition of audio while it arrives, for models that were trained in chunks (`student.encoder.chunk`).

The audio is divided into utterances: an utterance ends where the end symbol is recognised, where no token was
recognised for `pause` seconds after a token, or after `longest` seconds. All decisions are made after whole chunks, so
the result does not depend on the pieces in which samples arrive. The result of an utterance is that of the same model
with the same limits of context over the whole utterance (:meth:`retort.decoding.recogniser.Recogniser.limit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import TimedText, Transcript, join_transcripts, time_hypothesis
from retort.streaming.encoder import EncoderStream, advance, keep, one_channel
from retort.streaming.tokens import TokenStream, open_tokens
from retort.students.cif import CifStudent

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


class _Stream:
    """One stream: the utterance in progress, and the samples after its last chunk."""

    def __init__(self, owner: StreamBatch) -> None:
        self.owner = owner
        self.finished: list[Transcript] = []
        self.emissions: list[tuple[TimedText, float]] = []
        self.ended = False
        self._rest = torch.zeros(0)
        self._start = self._consumed = 0
        self._open()

    def _open(self) -> None:
        recogniser = self.owner.recogniser
        self.encoder = EncoderStream(recogniser.student.encoder, recogniser.features, self.owner.chunks)
        self.tokens: TokenStream = open_tokens(recogniser.student, self.owner.chunks)
        self.encoder.accept(self._rest)

    def accept(self, samples: Tensor) -> None:
        if self.ended:
            raise UserError("the stream has ended", remedy="Open another one")
        self._rest = torch.cat((self._rest, samples))
        self.encoder.accept(samples)

    def ready(self) -> bool:
        return self.encoder.waiting() > 0

    def advance(self, hidden: Tensor, alphas: Tensor | None) -> None:
        """Decode the frames of a chunk, and end the utterance where it ends."""
        self.tokens.advance(hidden, alphas, self.encoder.seconds)
        done = self._samples_done()
        self._rest = self._rest[done - self._consumed :].clone()
        self._consumed = done
        if not self.ended and self._is_over():
            self.close()
            self._start += done
            self._open()

    def end(self) -> None:
        self.encoder.end()
        self.ended = True

    def _samples_done(self) -> int:
        return round(self.encoder.feature_frames * self.owner.shift)

    def _is_over(self) -> bool:
        options, seconds = self.owner.options, self._samples_done() / self.owner.recogniser.sampling_rate
        if seconds + self.owner.chunk_seconds > options.longest:
            return True
        if not options.pause:
            return False
        last = self.tokens.current().ends[-1:]
        silence = seconds - last[0] * self.owner.recogniser.frame_seconds if last else 0.0
        return self.tokens.over or silence >= options.pause

    def close(self) -> None:
        """End the utterance in progress."""
        self.tokens.finish(self.encoder.seconds)
        transcript = self._timed()
        self.emissions += self._emissions(transcript)
        if transcript.text:
            self.finished.append(transcript)
        self._consumed = 0

    def _timed(self) -> Transcript:
        owner, rate = self.owner.recogniser, self.owner.recogniser.sampling_rate
        frames = self.encoder.feature_frames * self.owner.shift / rate
        hypothesis = self.tokens.current()
        return time_hypothesis(hypothesis, owner.tokenizer, owner.frame_seconds, self._start / rate, frames)

    def _emissions(self, transcript: Transcript) -> list[tuple[TimedText, float]]:
        """The words with the second of the stream at which their last token was recognised."""
        start = self._start / self.owner.recogniser.sampling_rate
        seconds, words = (
            self.tokens.emitted.seconds,
            self.owner.recogniser.tokenizer.words(self.tokens.emitted.ids),
        )
        return [(timed, start + seconds[word.last]) for timed, word in zip(transcript.words, words)]

    def size(self) -> int:
        """Number of values that are kept."""
        return self._rest.numel() + self.encoder.kept() + self.tokens.size()

    def partial(self) -> Partial:
        finished, self.finished = self.finished, []
        rate = self.owner.recogniser.sampling_rate
        until = (self._start + self._samples_done()) / rate
        if self.ended:
            return Partial("", [], until, finished)
        current = self._timed()
        return Partial(
            current.text, current.words, current.words[-1].start if current.words else until, finished
        )


class StreamBatch:
    """Several streams of one model, whose chunks are computed together where they are complete at the same time.

    Args:
        recogniser: model that was trained in chunks.
        options: latency and division.
        streams: number of streams.

    Raises:
        UserError: the model needs whole utterances, or an option is out of its range.
    """

    def __init__(self, recogniser: Recogniser, options: StreamOptions, streams: int = 1) -> None:
        encoder = recogniser.student.encoder
        self.recogniser = recogniser
        self.shift = recogniser.sampling_rate / 100
        self.chunk_seconds = options.chunk * recogniser.frame_seconds
        longest = options.longest if encoder.longest is None else min(options.longest, encoder.longest / 100)
        self.options = replace(options, longest=longest)
        most = round(longest / recogniser.frame_seconds)
        chunks = recogniser.chunks(options.chunk, options.left)
        if options.chunk > most:
            raise UserError(f"the chunk is {options.chunk} frames", remedy=f"Choose at most {most}")
        self.chunks = replace(chunks, left=min(chunks.left or most, most))
        self._streams = [_Stream(self) for _ in range(streams)]

    def accept(self, pieces: Sequence[object]) -> list[Partial]:
        """Add samples to every stream; a piece may be empty.

        Args:
            pieces: one per stream: samples `(N,)` of one channel at the recogniser's sampling rate, as
                :meth:`retort.decoding.recogniser.Recogniser.transcribe_samples` accepts them.
        """
        for stream, piece in zip(self._streams, pieces, strict=True):
            stream.accept(one_channel(piece, "samples"))
        self._work()
        return [stream.partial() for stream in self._streams]

    @torch.inference_mode()
    def finish(self, rows: Sequence[int] | None = None) -> list[Partial]:
        """End streams, by default all: what remains is recognised, and the last utterance ends."""
        ending = [self._streams[row] for row in (range(len(self._streams)) if rows is None else rows)]
        ending = [stream for stream in ending if not stream.ended]
        for stream in ending:
            stream.end()
        self._work()
        for stream in ending:
            stream.close()
        return [stream.partial() for stream in self._streams]

    def hypotheses(self) -> list[Hypothesis]:
        """Tokens so far of the utterance in progress, or of the last one, of each stream."""
        return [stream.tokens.current() for stream in self._streams]

    def state_size(self) -> int:
        """Number of values that all streams keep: samples, features, and the state of encoder and decoder."""
        return sum(stream.size() for stream in self._streams)

    def emissions(self, row: int = 0) -> list[tuple[TimedText, float]]:
        """The words of the utterances of a stream that have ended, each with the second of the stream at which the
        audio that it depends on had arrived."""
        return self._streams[row].emissions

    @torch.inference_mode()
    def _work(self) -> None:
        student = self.recogniser.student
        while ready := [stream for stream in self._streams if stream.ready()]:
            encoders = [stream.encoder for stream in ready]
            hidden, lengths, cache = advance(encoders, self.chunks)
            alphas = None
            if isinstance(student, CifStudent) and student.weights is not None:
                alphas = student.weights(hidden, lengths, replace(self.chunks, cache=cache))
            keep(encoders, cache)
            for row, stream in enumerate(ready):
                count = int(lengths[row])
                stream.advance(hidden[row, :count], None if alphas is None else alphas[row, :count])


class Streamer:
    """One stream: arguments as :class:`StreamBatch`, with the options as keyword arguments.

    Example::

        streamer = Streamer(retort.load("exp/english/streaming_cif"), chunk=8)
        for samples in microphone:
            print(streamer.accept(samples).text)
        print(streamer.finish().finished)
    """

    def __init__(
        self,
        recogniser: Recogniser,
        chunk: int,
        left: int = 0,
        longest: float = LONGEST,
        pause: float = PAUSE,
    ):
        self._batch = StreamBatch(recogniser, StreamOptions(chunk, left, longest, pause))

    def accept(self, samples: object) -> Partial:
        """Add samples `(N,)` of one channel at the recogniser's sampling rate."""
        (partial,) = self._batch.accept([samples])
        return partial

    def finish(self) -> Partial:
        """Recognise what remains; the stream ends."""
        (partial,) = self._batch.finish()
        return partial

    def state_size(self) -> int:
        """See :meth:`StreamBatch.state_size`."""
        return self._batch.state_size()

    @property
    def emissions(self) -> list[tuple[TimedText, float]]:
        """See :meth:`StreamBatch.emissions`."""
        return self._batch.emissions()


def joined(finished: Sequence[Transcript], recogniser: Recogniser) -> Transcript:
    """The transcript of a stream from those of its utterances."""
    return join_transcripts(finished, recogniser.separator)
