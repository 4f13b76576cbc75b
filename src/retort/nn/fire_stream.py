"""Continuous integrate-and-fire over consecutive chunks of frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retort.nn.cif import ROUNDING, NotFiniteError


class FireStream:
    """:func:`retort.nn.cif.integrate_and_fire` of one utterance whose frames arrive in chunks.

    The state is the sum of all weights, the number of tokens, and the vector of the token in progress. Tokens and times
    are those of the whole utterance; vectors differ only by the order of summation.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.fired = self.frames = 0
        self._vector: Tensor | None = None

    def __call__(self, hidden: Tensor, alphas: Tensor) -> tuple[list[Tensor], list[float]]:
        """The tokens that are complete after the next frames.

        Args:
            hidden: `(T, D)`.
            alphas: `(T,)`; a weight below 0 counts as 0.

        Returns:
            Vectors `(D,)` and fire times in frames from the start of the utterance.

        Raises:
            NotFiniteError: a weight is not finite.
        """
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        vectors, times = [], []
        for frame, weight in zip(wide, alphas.double().tolist()):
            if not math.isfinite(weight):
                raise NotFiniteError("a weight in alphas is not finite")
            before, position = self.total, self.total
            self.total += max(weight, 0.0)
            while self.fired + 1 <= self.total:
                self.fired += 1
                self._add((self.fired - position) * frame)
                position = float(self.fired)
                vectors.append(self._taken().to(hidden.dtype))
                times.append(self.frames + (self.fired - before) / (self.total - before))
            self._add((self.total - position) * frame)
            self.frames += 1
        return vectors, times

    def finish(self, tail: float) -> tuple[list[Tensor], list[float]]:
        """The token of the remaining weight, if it is larger than `tail`; results as for a call."""
        rest = self.total - math.floor(self.total)
        slack = self.total * ROUNDING
        if not (rest > max(slack, tail) or (rest >= 1.0 - slack and rest > 0.0)):
            return [], []
        return [self._taken() / rest], [float(self.frames)]

    def _add(self, part: Tensor) -> None:
        self._vector = part if self._vector is None else self._vector + part

    def _taken(self) -> Tensor:
        assert self._vector is not None
        vector, self._vector = self._vector, None
        return vector
