"""The registry of losses, the values of `loss:` of a row. Every file of `distill/losses` registers one loss.

A new loss is a new file there; its name in recipes is the name of the file (`docs/new_loss.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from retort.config.distill import Compared, Declaration
from retort.distill.positions import PositionLosses

LossFunction: TypeAlias = Callable[..., PositionLosses]
"""Maps student vectors `(N, D)`, the targets and the row's configuration to a loss for each position. What compares
frames gets :class:`retort.distill.positions.FrameVectors` instead of the student's vectors."""


class RowLoss(NamedTuple):
    """A registered loss: its function and what its file declares."""

    function: LossFunction
    declared: Declaration

    @property
    def compares(self) -> Compared:
        """The kind of its input."""
        return self.declared.compares


LOSSES: dict[str, RowLoss] = {}
"""Losses by name; complete once `retort.distill.losses` is imported."""


def row_loss(
    compares: Compared = "projected", *, temperature: float = 0.02, scale_free: bool = False
) -> Callable[[LossFunction], LossFunction]:
    """Register the decorated function under the name of its file.

    Args:
        compares, temperature, scale_free: see :class:`retort.config.distill.Declaration`. They must be literals: the
            checks of recipes read them from the file without importing it.

    Raises:
        ValueError: the file has already registered a loss.
    """

    def register(function: LossFunction) -> LossFunction:
        name = function.__module__.rpartition(".")[2]
        if name in LOSSES:
            raise ValueError(f"{function.__module__} registers two losses, only one per file is allowed")
        LOSSES[name] = RowLoss(function, Declaration(compares, temperature, scale_free))
        return function

    return register
