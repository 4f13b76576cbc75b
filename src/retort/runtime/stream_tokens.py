"""Greedy decoding of one utterance of an exported model whose frames arrive in chunks."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from retort.decoding.hypothesis import NEVER_EMITTED
from retort.runtime.session import Arrays, Session
from retort.runtime.stream_folder import ExportedStreams
from retort.streaming.attended import AttendedTokens
from retort.streaming.utterances import Tokens
from retort.text.tokenizers import EOS

ROUNDING = 2.0**-23
"""As `retort.nn.cif.ROUNDING`."""
_PAST = ("keys", "values")


class ExportedTokens(Tokens):
    """Tokens of one utterance of an exported model."""

    @abstractmethod
    def advance(self, made: Arrays, row: int, seconds: float) -> None:
        """Decode the frames of a chunk.

        Args:
            made: outputs of the graph of a chunk.
            row: of this stream in them.
            seconds: duration of the audio so far.
        """


class FiredTokens(ExportedTokens):
    """One token per fire, with the decoder's cache; the remaining weight fires at the end.

    Args:
        step: graph of a step of the decoder.
        model: with `past`.
        chunk: frames of a chunk.
    """

    def __init__(self, step: Session, model: ExportedStreams, chunk: int) -> None:
        super().__init__()
        self._step, self._model, self._chunk = step, model, chunk
        self._frames, self._total = 0, 0.0
        self._memory: Arrays = {}
        assert model.past is not None
        layers, heads, width = model.past
        empty = np.zeros((layers, 1, 1, heads, 0, width), np.float32)
        self._past: Arrays = {f"past_{name}": empty for name in _PAST}
        self._previous, self._number = EOS, 0
        self._before: NDArray[np.float32] = np.zeros((1, model.dim), np.float32)
        self._last = self._rest = self._before

    def advance(self, made: Arrays, row: int, seconds: float) -> None:
        own, frames, start = slice(row, row + 1), int(made["frames"][row]), self._frames
        self._frames, self._total = start + frames, float(made["next_total"][row])
        self._last, self._rest = made["last"][own].copy(), made["next_vector"][own].copy()
        if self._model.attends:
            _extend(
                self._memory, {name: made[name][own, :frames] for name in _PAST}, {"keys": 1, "values": 1}
            )
        for number in range(int(made["counts"][row])):
            self._decode(made["embeddings"][own, number], start + float(made["times"][row, number]), seconds)

    def finish(self, seconds: float) -> None:
        rest = self._total - np.floor(self._total)
        slack = self._total * ROUNDING
        if rest > max(slack, self._model.tail) or (rest >= 1.0 - slack and rest > 0.0):
            self._decode((self._rest / rest).astype(np.float32), float(self._frames), seconds)
        if self._frames:
            for _ in range(self._model.spare):
                self._decode(self._last, float(self._frames), seconds)

    def size(self) -> int:
        return super().size() + sum(each.size for each in (*self._memory.values(), *self._past.values()))

    def _decode(self, vector: NDArray[np.float32], time: float, seconds: float) -> None:
        if self.over:
            return
        place = min(max(int(np.ceil(np.float32(time))) - 1, 0), self._frames - 1)
        after = self._step(
            {
                "previous": np.array([[self._previous]]),
                "position": np.array(self._number),
                "embedding": vector,
                "before": self._before,
                "frames": np.array([min((place // self._chunk + 1) * self._chunk, self._frames)]),
                "place": np.array([place]),
                **self._memory,
                **self._past,
            }
        )
        self._past = {f"past_{name}": after[f"next_{name}"] for name in _PAST}
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


class ExportedAttended(AttendedTokens, ExportedTokens):
    """Tokens of Whisper's decoder, whose attention places the fires.

    Args:
        step: graph of a step of the decoder.
        prompt: graph of its prompt.
        spare: number of tokens after the last fire.
    """

    def __init__(self, step: Session, prompt: Session, spare: int) -> None:
        super().__init__(spare)
        self._step, self._prompt = step, prompt
        self._memory: Arrays = {}
        self._past: Arrays = {}
        self._next: Arrays = {}
        self._previous, self._number = EOS, 0

    def advance(self, made: Arrays, row: int, seconds: float) -> None:
        frames = int(made["frames"][row])
        keys, values = made["keys"][:, row : row + 1], made["values"][:, row : row + 1]
        _extend(
            self._memory,
            {"keys": keys[..., :frames], "values": values[..., :frames, :]},
            {"keys": 4, "values": 3},
        )
        self.add(made["hidden"][row, :frames], made["alphas"][row, :frames], seconds)

    def score(
        self, vector: NDArray[np.floating], place: int
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        given = {
            "previous": np.array([[self._previous]]),
            "position": np.array(self._number),
            "embedding": vector[None].astype(np.float32),
            "frames": np.array([self.fires.frames]),
            "place": np.array([place]),
            **self._memory,
        }
        after = self._step({**given, **(self._past or self._prompt(given))})
        self._next = {f"past_{name}": after[f"next_{name}"] for name in _PAST}
        return after["log_probs"][0, 0], after["attention"][0, 0]

    def accept(self, token: int) -> None:
        self._past, self._previous, self._number = self._next, token, self._number + 1

    def size(self) -> int:
        return super().size() + sum(each.size for each in (*self._memory.values(), *self._past.values()))


def _extend(memory: Arrays, later: Arrays, axes: dict[str, int]) -> None:
    """Add frames to those of a memory along the axis of each array."""
    for name, more in later.items():
        memory[name] = np.concatenate((memory[name], more), axes[name]) if name in memory else more.copy()
