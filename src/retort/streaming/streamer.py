"""Recognition of audio while it arrives, for models that were trained in chunks (`student.encoder.chunk`).

The result of an utterance is that of the same model with the same limits of context over the whole utterance
(:meth:`retort.decoding.recogniser.Recogniser.limit`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser
from retort.streaming.encoder import EncoderStream, advance, keep
from retort.streaming.tokens import NextFrames, TokenStream, open_tokens
from retort.streaming.utterances import LONGEST, PAUSE, OneStream, Partial, Stream, StreamOptions, Streams
from retort.students.cif import CifStudent


class StreamBatch(Streams[EncoderStream, TokenStream]):
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
        longest = options.longest if encoder.longest is None else min(options.longest, encoder.longest / 100)
        super().__init__(recogniser, replace(options, longest=longest))
        self.recogniser = recogniser
        most = round(longest / recogniser.frame_seconds)
        chunks = recogniser.chunks(options.chunk, options.left)
        if options.chunk > most:
            raise UserError(f"the chunk is {options.chunk} frames", remedy=f"Choose at most {most}")
        self.chunks = replace(chunks, left=min(chunks.left or most, most))
        self.utterance()  # raises an error for a model that needs whole utterances
        for _ in range(streams):
            self.open()

    @torch.inference_mode()
    def utterance(self) -> tuple[EncoderStream, TokenStream]:
        student = self.recogniser.student
        encoder = EncoderStream(student.encoder, self.recogniser.features, self.chunks)
        return encoder, open_tokens(student, self.chunks)

    @torch.inference_mode()
    def advance(self, pieces: Mapping[int, object], ending: Collection[int] = ()) -> dict[int, Partial]:
        return super().advance(pieces, ending)

    def compute(self, ready: Sequence[Stream[EncoderStream, TokenStream]]) -> None:
        student = self.recogniser.student
        encoders = [stream.encoder for stream in ready]
        hidden, lengths, cache = advance(encoders, self.chunks)
        alphas = None
        if isinstance(student, CifStudent) and student.weights is not None:
            alphas = student.weights(hidden, lengths, replace(self.chunks, cache=cache))
        keep(encoders, cache)
        tokens = [stream.tokens for stream in ready]
        seconds = [encoder.seconds for encoder in encoders]
        type(tokens[0]).advance(tokens, NextFrames(hidden, lengths.tolist(), alphas, seconds))


class Streamer(OneStream):
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
        super().__init__(StreamBatch(recogniser, StreamOptions(chunk, left, longest, pause), 0))
