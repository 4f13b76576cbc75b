"""What `loss:` of a row may be. The files of `distill/losses` fill it in, each its own line.

A new loss is a new file there and nothing else: its name in recipes is the file's (`docs/new_loss.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import PositionLosses, Targets

Compared = Literal["projected", "unprojected", "symbols"]
"""What a loss lays beside the teacher's vectors: the tap through a projection of the row's own to their width, the tap
itself whatever its width, or logits over symbols."""
LossFunction: TypeAlias = Callable[[Tensor, Targets, RowConfig], PositionLosses]
"""Student vectors `(N, D)`, the targets and the row's configuration to a loss a position."""


class RowLoss(NamedTuple):
    """A loss as rows use it."""

    function: LossFunction
    compares: Compared


LOSSES: dict[str, RowLoss] = {}
"""By name; whole once `retort.distill.losses` is imported."""


def row_loss(compares: Compared = "projected") -> Callable[[LossFunction], LossFunction]:
    """Enter the decorated function under the name of its file.

    Raises:
        ValueError: the file has entered one already.
    """

    def enter(function: LossFunction) -> LossFunction:
        name = function.__module__.rpartition(".")[2]
        if name in LOSSES:
            raise ValueError(f"{function.__module__} has two losses of rows, a file has one")
        LOSSES[name] = RowLoss(function, compares)
        return function

    return enter
