"""The registry of losses, the values of `loss:` of a row. Every file of `distill/losses` registers one loss.

A new loss is a new file there; its name in recipes is the name of the file (`docs/new_loss.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import PositionLosses, Targets

Compared = Literal["projected", "unprojected", "symbols"]
"""Input of a loss: the tap projected to the width of the teacher's vectors, the tap itself with any width, or logits
over symbols."""
LossFunction: TypeAlias = Callable[[Tensor, Targets, RowConfig], PositionLosses]
"""Maps student vectors `(N, D)`, the targets and the row's configuration to a loss for each position."""


class RowLoss(NamedTuple):
    """A registered loss and the kind of its input."""

    function: LossFunction
    compares: Compared


LOSSES: dict[str, RowLoss] = {}
"""Losses by name; complete once `retort.distill.losses` is imported."""


def row_loss(compares: Compared = "projected") -> Callable[[LossFunction], LossFunction]:
    """Register the decorated function under the name of its file.

    Raises:
        ValueError: the file has already registered a loss.
    """

    def register(function: LossFunction) -> LossFunction:
        name = function.__module__.rpartition(".")[2]
        if name in LOSSES:
            raise ValueError(f"{function.__module__} registers two losses, only one per file is allowed")
        LOSSES[name] = RowLoss(function, compares)
        return function

    return register
