"""Fires of CIF that start again from the position of each token in the decoder's attention (ours)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retort.nn.cif import NotFiniteError

DELAY = 1.0
"""Weight that must follow the end of a token before it is decoded. Without it the decoder decodes before it sees the whole
token, and may repeat it."""
LEAST = 0.25
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
        self._hidden: Tensor | None = None
        self._sums: list[float] = [0.0]  # sum of the weights before each frame, and after the last one
        self._start = 0.0  # sum of the weights at which the next token begins

    def add(self, hidden: Tensor, alphas: Tensor) -> None:
        """Add frames.

        Args:
            hidden: `(T, D)`.
            alphas: `(T,)`; a weight below 0 counts as 0.

        Raises:
            NotFiniteError: a weight is not finite.
        """
        for weight in alphas.double().tolist():
            if not math.isfinite(weight):
                raise NotFiniteError("a weight in alphas is not finite")
            self._sums.append(self._sums[-1] + max(weight, 0.0))
        self._hidden = hidden if self._hidden is None else torch.cat((self._hidden, hidden))
        self.frames += len(hidden)

    @property
    def ready(self) -> bool:
        """Whether the next token can be decoded before the utterance ends."""
        return self._sums[-1] >= self._start + 1.0 + DELAY

    @property
    def remaining(self) -> int:
        """Number of tokens of the weights that no token has used yet, rounded up."""
        return max(math.ceil(self._sums[-1] - self._start), 0)

    def next(self) -> tuple[Tensor, float]:
        """The vector `(D,)` of the next token, and its end in frames.

        The vector is the sum of the frames by their weights in the token; at the end of the utterance these may be less
        than 1, and the last frame takes the place of none.
        """
        assert self._hidden is not None
        sums = torch.tensor(self._sums, dtype=torch.float64)
        end = min(self._start + 1.0, self._sums[-1])
        shares = (sums[1:].clamp(max=end) - sums[:-1].clamp(min=self._start)).clamp(min=0.0)
        total = float(shares.sum())
        if total <= 0.0:
            return self._hidden[-1], float(self.frames)
        wide = self._hidden.to(torch.promote_types(self._hidden.dtype, torch.float32))
        vector = (shares / total).to(wide) @ wide
        frame = int(torch.searchsorted(sums[1:], end))
        weight = self._sums[frame + 1] - self._sums[frame]
        return vector.to(self._hidden.dtype), frame + (end - self._sums[frame]) / weight

    def attended(self, frame: int) -> None:
        """Start again from the token just decoded, whose middle is `frame`."""
        middle = (self._sums[frame] + self._sums[frame + 1]) / 2
        self._start = max(middle + 0.5, self._start + LEAST)

    def size(self) -> int:
        """Number of values that are kept."""
        return len(self._sums) + (0 if self._hidden is None else self._hidden.numel())
