"""Greedy decoding in chunks where the decoder's attention places the fires of CIF (ours)."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from retort.decoding.hypothesis import NEVER_EMITTED
from retort.streaming.utterances import Tokens
from retort.text.tokenizers import EOS

DELAY = 0.5
"""Weight that must follow the end of a token before it is decoded. Without it the decoder may decode before it sees the
whole token, and repeat it."""
EDGE = 8
"""A token whose attention is at one of this number of last frames is decoded again with the next chunk (AlignAtt, Papi et
al. 2023)."""
LEAST = 0.6
"""Least weight from one token to the next."""


class AttendedFires:
    """Fires of one utterance whose frames arrive in chunks.

    Errors of the weights add up, so that after ten seconds the sum may be several tokens away from the audio. Where the
    decoder attends to all frames so far, this does not matter for the whole utterance, but in a stream a token that fires
    early is decoded before its frames are there. Here the sum starts again with each token: its middle is the frame to
    which the decoder attends most, and the next token ends 1.5 weights later.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._hidden: list[NDArray[np.floating]] = []
        self._sums: list[float] = [0.0]  # sum of the weights before each frame, and after the last one
        self._start = 0.0  # sum of the weights at which the next token begins

    def add(self, hidden: NDArray[np.floating], alphas: NDArray[np.floating]) -> None:
        """Add frames `(T, D)` and their weights `(T,)`; a weight below 0 counts as 0.

        Raises:
            ValueError: a weight is not finite.
        """
        if not np.isfinite(alphas).all():
            raise ValueError("a weight in alphas is not finite")
        for weight in alphas.tolist():
            self._sums.append(self._sums[-1] + max(weight, 0.0))
        self._hidden.append(hidden)
        self.frames += len(hidden)

    @property
    def ready(self) -> bool:
        """Whether the next token can be decoded before the utterance ends."""
        return self._sums[-1] >= self._start + 1.0 + DELAY

    @property
    def remaining(self) -> int:
        """Number of tokens of the weights that no token has used yet, rounded up."""
        return max(math.ceil(self._sums[-1] - self._start), 0)

    def next(self) -> tuple[NDArray[np.floating], float]:
        """The vector `(D,)` of the next token, and its end in frames.

        The vector is the mean of the frames by their weights in the token. At the end of the utterance these may be less
        than 1, and the last frame takes the place of none.
        """
        sums = np.array(self._sums)
        end = min(self._start + 1.0, self._sums[-1])
        shares = np.clip(np.minimum(sums[1:], end) - np.maximum(sums[:-1], self._start), 0.0, None)
        total = float(shares.sum())
        if total <= 0.0:
            return self._hidden[-1][-1], float(self.frames)
        hidden = np.concatenate(self._hidden)
        vector = (shares / total).astype(hidden.dtype) @ hidden
        frame = int(np.searchsorted(sums[1:], end))
        weight = self._sums[frame + 1] - self._sums[frame]
        return vector, frame + (end - self._sums[frame]) / weight

    def attended(self, frame: int) -> None:
        """Start again from the token just decoded, whose middle is `frame`."""
        middle = (self._sums[frame] + self._sums[frame + 1]) / 2
        self._start = max(middle + 0.5, self._start + LEAST)

    def size(self) -> int:
        """Number of values that are kept."""
        return len(self._sums) + sum(each.size for each in self._hidden)


class AttendedTokens(Tokens):
    """Tokens of a decoder that attends to all frames so far.

    Where the decoder recognises the end symbol before the audio ends, or attends to the last frames, the token is decoded
    again with the next chunk.

    Args:
        spare: number of tokens after the last fire.
    """

    def __init__(self, spare: int) -> None:
        super().__init__()
        self.spare = spare
        self.fires = AttendedFires()

    @abstractmethod
    def score(
        self, vector: NDArray[np.floating], place: int
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Log-probabilities `(V,)` of the next token, fired at the frame `place`, and its attention `(T,)` to the frames.

        The result is that of the same call again until :meth:`accept`.
        """

    @abstractmethod
    def accept(self, token: int) -> None:
        """The token just scored is this one."""

    def add(self, hidden: NDArray[np.floating], alphas: NDArray[np.floating], seconds: float) -> None:
        """Decode what frames `(T, D)` with the weights `(T,)` complete; the audio so far has this duration."""
        self.fires.add(hidden, alphas)
        while self.fires.ready and self._decode(seconds, self.fires.frames - EDGE):
            pass

    def finish(self, seconds: float) -> None:
        if not self.fires.frames:
            return
        for _ in range(self.fires.remaining + self.spare):
            if not self._decode(seconds, self.fires.frames):
                self.over = True
                return

    def size(self) -> int:
        return super().size() + self.fires.size()

    def _decode(self, seconds: float, limit: int) -> bool:
        """Decode the next token; false, without effect, if it is the end symbol or is at the frame `limit` or later."""
        vector, end = self.fires.next()
        log_probs, attention = self.score(vector, min(int(end), self.fires.frames - 1))
        log_probs[NEVER_EMITTED] = -np.inf
        token, place = int(log_probs.argmax()), int(attention.argmax())
        if token == EOS or place >= limit:
            return False
        self.accept(token)
        self.fires.attended(place)
        self.emitted.ids.append(token)
        self.emitted.log_probs.append(float(log_probs[token]))
        self.emitted.ends.append(max([end, *self.emitted.ends[-1:]]))
        self.emitted.seconds.append(seconds)
        return True
