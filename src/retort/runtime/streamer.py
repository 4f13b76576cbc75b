"""Recognition of audio while it arrives by an exported model; results are those of the model in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.decoding.hypothesis import NEVER_EMITTED
from retort.runtime.folder import STEP
from retort.runtime.recogniser import ExportedRecogniser
from retort.runtime.session import Arrays, Session
from retort.runtime.stream_folder import CHUNK, PROMPT, ExportedStreams, read_streams
from retort.streaming.feature_buffer import FeatureBuffer, Window
from retort.streaming.utterances import Stream, StreamOptions, Streams, Tokens
from retort.text.tokenizers import EOS

ROUNDING = 2.0**-23
"""As `retort.nn.cif.ROUNDING`."""


class ExportedEncoder(FeatureBuffer):
    """Samples, features, and the state of the encoder and of CIF of one utterance.

    Attributes:
        frames: encoder frames so far.
        total: sum of the weights so far.
        state: `vector (1, D)` of the token in progress, and the states of the layers, by their names as inputs.
    """

    def __init__(self, features: FeatureConfig, model: ExportedStreams, size: int) -> None:
        super().__init__(features, model.frontend, size)
        self.frames, self.total = 0, 0.0
        self.state: Arrays = {"vector": np.zeros((1, model.dim), np.float32)}
        for number, shape in enumerate(model.states):
            self.state[f"state_{number}"] = np.zeros((1, *shape), np.float32)

    def kept(self) -> int:
        return super().kept() + sum(each.size for each in self.state.values())


class ExportedTokens(Tokens):
    """One token per fire, with the decoder's cache; the remaining weight fires at the end.

    Args:
        step: graph of a step of the decoder.
        prompt: graph of the prompt of Whisper's decoder, or None.
        encoder: of the same utterance.
        chunk: frames of a chunk.
    """

    def __init__(
        self,
        step: Session,
        prompt: Session | None,
        model: ExportedStreams,
        encoder: ExportedEncoder,
        chunk: int,
    ) -> None:
        super().__init__()
        self._step, self._prompt, self._model, self._encoder, self._chunk = (
            step,
            prompt,
            model,
            encoder,
            chunk,
        )
        self._memory: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._past: Arrays | None = None
        self._previous, self._number = EOS, 0
        self._before: NDArray[np.float32] = np.zeros((1, model.dim), np.float32)
        self._last = self._before

    def advance(self, made: Arrays, row: int, seconds: float) -> None:
        """Decode the fires of a chunk, after which :attr:`ExportedEncoder.frames` counts its frames.

        Args:
            made: outputs of the graph of a chunk.
            row: of this stream in them.
            seconds: duration of the audio so far.
        """
        if self.over:
            return
        own = slice(row, row + 1)
        frames = int(made["frames"][row])
        self._last = made["last"][own].copy()
        if self._model.attends:
            self._remember(made["keys"], made["values"], own, frames)
        start = self._encoder.frames - frames
        for number in range(int(made["counts"][row])):
            self._decode(made["embeddings"][own, number], start + float(made["times"][row, number]), seconds)

    def finish(self, seconds: float) -> None:
        total, frames = self._encoder.total, float(self._encoder.frames)
        rest = total - np.floor(total)
        slack = total * ROUNDING
        if rest > max(slack, self._model.tail) or (rest >= 1.0 - slack and rest > 0.0):
            self._decode((self._encoder.state["vector"] / rest).astype(np.float32), frames, seconds)
        if self._encoder.frames:
            for _ in range(self._model.spare):
                self._decode(self._last, frames, seconds)

    def size(self) -> int:
        memory = sum(keys.size + values.size for keys, values in self._memory)
        return super().size() + memory + sum(each.size for each in (self._past or {}).values())

    def _remember(
        self, keys: NDArray[np.float32], values: NDArray[np.float32], own: slice, frames: int
    ) -> None:
        layers = keys.ndim == 5  # `(L, N, H, D / H, F)`, otherwise `(N, F, D)`
        if layers:
            keys, values = keys[:, own, ..., :frames], values[:, own, :, :frames]
        else:
            keys, values = keys[own, :frames], values[own, :frames]
        if self._memory:
            before, others = self._memory.pop()
            keys = np.concatenate((before, keys), 4 if layers else 1)
            values = np.concatenate((others, values), 3 if layers else 1)
        self._memory.append((keys, values))

    def _decode(self, vector: NDArray[np.float32], time: float, seconds: float) -> None:
        if self.over:
            return
        seen = self._encoder.frames
        place = min(max(int(np.ceil(np.float32(time))) - 1, 0), seen - 1)
        inputs: Arrays = {
            "previous": np.array([[self._previous]]),
            "position": np.array(self._number),
            "embedding": vector,
            "before": self._before,
            "frames": np.array([min((place // self._chunk + 1) * self._chunk, seen)]),
            "place": np.array([place]),
        }
        if self._memory:
            inputs["keys"], inputs["values"] = self._memory[0]
        if self._past is None:
            self._past = self._started(inputs)
        after = self._step({**inputs, **self._past})
        self._past = {f"past_{name}": after[f"next_{name}"] for name in ("keys", "values")}
        self._number, self._before = self._number + 1, vector
        log_probs = after["log_probs"][0, 0]
        log_probs[NEVER_EMITTED] = -np.inf
        self._previous = int(log_probs.argmax())
        if self._previous == EOS:
            self.over = True
            return
        self.emitted.ids.append(self._previous)
        self.emitted.log_probs.append(float(log_probs[self._previous]))
        self.emitted.ends.append(time)
        self.emitted.seconds.append(seconds)

    def _started(self, inputs: Arrays) -> Arrays:
        """Keys and values before the first token."""
        if self._prompt is not None:
            return self._prompt(inputs)
        assert self._model.past is not None
        layers, heads, width = self._model.past
        empty = np.zeros((layers, 1, 1, heads, 0, width), np.float32)
        return {"past_keys": empty, "past_values": empty}


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
        return encoder, ExportedTokens(self._step, self._prompt, self.model, encoder, self.options.chunk)

    def compute(self, ready: Sequence[Stream[ExportedEncoder, ExportedTokens]]) -> None:
        encoders = [stream.encoder for stream in ready]
        made = self._graph(self._inputs([each.next_window() for each in encoders], encoders))
        names = encoders[0].state
        after = {name: np.split(made[f"next_{name}"], len(ready)) for name in names}
        for row, (stream, encoder) in enumerate(zip(ready, encoders)):
            encoder.frames += int(made["frames"][row])
            encoder.total = float(made["next_total"][row])
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
            "total": np.array([each.total for each in encoders]),
            **{name: np.concatenate([each.state[name] for each in encoders]) for name in encoders[0].state},
        }
