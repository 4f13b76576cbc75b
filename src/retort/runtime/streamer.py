"""Recognition of audio while it arrives by an exported model; results are those of the model in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.runtime.folder import STEP
from retort.runtime.recogniser import ExportedRecogniser
from retort.runtime.session import Arrays, Session
from retort.runtime.stream_folder import CHUNK, PROMPT, ExportedStreams, read_streams
from retort.runtime.stream_tokens import ExportedAttended, ExportedTokens, FiredTokens
from retort.streaming.feature_buffer import FeatureBuffer, Window
from retort.streaming.utterances import Stream, StreamOptions, Streams


class ExportedEncoder(FeatureBuffer):
    """Samples, features, and the state of the encoder and of CIF of one utterance.

    Attributes:
        frames: encoder frames so far.
        state: states of the layers and of CIF, by their names as inputs.
    """

    def __init__(self, features: FeatureConfig, model: ExportedStreams, size: int) -> None:
        super().__init__(features, model.frontend, size)
        self.frames = 0
        self.state: Arrays = {}
        if model.past is not None:  # otherwise the decoder's attention places the fires
            self.state |= {"total": np.zeros(1), "vector": np.zeros((1, model.dim), np.float32)}
        for number, shape in enumerate(model.states):
            self.state[f"state_{number}"] = np.zeros((1, *shape), np.float32)

    def kept(self) -> int:
        return super().kept() + sum(each.size for each in self.state.values())


class ExportedStreamBatch(Streams[ExportedEncoder, ExportedTokens]):
    """Streams of an exported model; none is open at first.

    Args:
        recogniser: exported model with streams.
        options: latency and division; a chunk of 0 selects the smallest of the training.
        threads: CPU threads of one call.

    Raises:
        UserError: the model has no streams, or an option is out of its range.
    """

    def __init__(self, recogniser: ExportedRecogniser, options: StreamOptions, threads: int = 1) -> None:
        folder = recogniser.streams_folder
        if folder is None:
            raise UserError(
                "this model was not trained in chunks, so it needs whole utterances",
                remedy="Leave out --stream and --chunk, or export a model that was trained with student.encoder.chunk",
            )
        self.model = read_streams(folder)
        most = options.longest if recogniser.most_frames is None else recogniser.most_frames / 100
        chunk = options.chunk or min(self.model.chunks)
        super().__init__(recogniser, replace(options, chunk=chunk, longest=min(options.longest, most)))
        longest = round(self.options.longest / recogniser.frame_seconds)
        if not 1 <= chunk <= longest:
            raise UserError(f"the chunk is {chunk} frames", remedy=f"Choose 1 to {longest}")
        if options.left not in (0, self.model.left):
            raise UserError(
                f"left is {options.left}, but this export has {self.model.left} frames before a chunk",
                remedy="Leave it out",
            )
        self._size = chunk * recogniser.model.subsampling // self.model.frontend.subsampling
        self._graph, self._step = Session(folder / CHUNK, threads), Session(folder / STEP, threads)
        self._prompt = None if self.model.past is not None else Session(folder / PROMPT, threads)

    def utterance(self) -> tuple[ExportedEncoder, ExportedTokens]:
        encoder = ExportedEncoder(self.transcriber.features, self.model, self._size)
        if self._prompt is not None:
            return encoder, ExportedAttended(self._step, self._prompt, self.model.spare)
        return encoder, FiredTokens(self._step, self.model, self.options.chunk)

    def compute(self, ready: Sequence[Stream[ExportedEncoder, ExportedTokens]]) -> None:
        encoders = [stream.encoder for stream in ready]
        made = self._graph(self._inputs([each.next_window() for each in encoders], encoders))
        names = encoders[0].state
        after = {name: np.split(made[f"next_{name}"], len(ready)) for name in names}
        for row, (stream, encoder) in enumerate(zip(ready, encoders)):
            encoder.frames += int(made["frames"][row])
            encoder.state = {name: each[row].copy() for name, each in after.items()}
            stream.tokens.advance(made, row, encoder.seconds)

    def _inputs(self, windows: Sequence[Window], encoders: Sequence[ExportedEncoder]) -> Arrays:
        sizes = self.model.frontend
        full = (sizes.lead + self._size) * sizes.subsampling + sizes.after
        features = np.zeros((len(windows), full, self.transcriber.features.bins), np.float32)
        valid = []
        for row, window in enumerate(windows):
            # Features before the utterance and after it are zero.
            begin = (sizes.lead - window.lead) * sizes.subsampling
            features[row, begin : begin + len(window.features)] = window.features
            valid.append(begin + len(window.features))
        return {
            "features": features,
            "valid": np.array(valid),
            "count": np.array([window.frames for window in windows]),
            "first": np.array([each.frames for each in encoders]),
            **{name: np.concatenate([each.state[name] for each in encoders]) for name in encoders[0].state},
        }
