"""The registry of losses, the values of `loss:` of a row. Every file of `distill/losses` registers one loss.

A new loss is a new file there; its name in recipes is the name of the file (`docs/new_loss.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from retort.config.distill import Compared
from retort.config.schema import RowConfig
from retort.distill.positions import PositionLosses, Targets

LossFunction: TypeAlias = Callable[[Tensor, Targets, RowConfig], PositionLosses]
"""Maps student vectors `(N, D)`, the targets and the row's configuration to a loss for each position."""


class RowLoss(NamedTuple):
    """A registered loss.

    Attributes:
        function: computes the loss.
        compares: its input.
        scale_free: whether the norm of the student's vectors does not affect it, so that a projection of zeros has no
            useful gradient.
    """

    function: LossFunction
    compares: Compared
    scale_free: bool = False


LOSSES: dict[str, RowLoss] = {}
"""Losses by name; complete once `retort.distill.losses` is imported."""


def row_loss(
    compares: Compared = "projected", *, scale_free: bool = False
) -> Callable[[LossFunction], LossFunction]:
    """Register the decorated function under the name of its file; see :class:`RowLoss`.

    `compares` must be a literal: the checks of recipes read it from the file without importing it.

    Raises:
        ValueError: the file has already registered a loss.
    """

    def register(function: LossFunction) -> LossFunction:
        name = function.__module__.rpartition(".")[2]
        if name in LOSSES:
            raise ValueError(f"{function.__module__} registers two losses, only one per file is allowed")
        LOSSES[name] = RowLoss(function, compares, scale_free)
        return function

    return register
