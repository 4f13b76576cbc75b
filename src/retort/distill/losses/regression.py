"""The squared error between student and teacher vectors.

Han et al., Interspeech 2023 (arXiv 2301.13003), linguistic regression distillation; their published code sums
over the dimensions, with weight 0.01.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import (
    PositionLosses,
    Reduction,
    Targets,
    check_pairs,
    full_precision,
    reduce_positions,
)
from retort.distill.registry import row_loss

Dimensions = Literal["sum", "mean"]


def regression_loss(
    student: Tensor, teacher: Tensor, *, reduce: Dimensions = "sum", reduction: Reduction = "mean"
) -> Tensor:
    """Squared error of every position, summed or averaged over its dimensions.

    Args:
        student: `(N, D)` projected student vectors; any floating dtype.
        teacher: `(N, D)` teacher vectors.
        reduce: over the D dimensions of a position; `sum` is D times `mean`.
        reduction: over the N positions.

    Returns:
        `(N,)` for `reduction="none"`, otherwise a scalar (0 for N = 0); float64 if an input is, else float32.

    Raises:
        ValueError: the shapes do not match, or `reduce` or the reduction is unknown.
    """
    check_pairs(student, teacher)
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce is {reduce!r}, must be 'sum' or 'mean'")
    student, teacher = full_precision(student, teacher)
    squares = (student - teacher).square()
    return reduce_positions(squares.sum(1) if reduce == "sum" else squares.mean(1), reduction)


@row_loss()
def regression_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: regression`; logs the targets' `power`, the loss of predicting zeros."""
    reduce = cast(Dimensions, config.reduce)
    (teacher,) = full_precision(targets.vectors)
    losses, power = (
        regression_loss(guess, teacher, reduce=reduce, reduction="none")
        for guess in (student, torch.zeros_like(teacher))
    )
    return PositionLosses(losses, {"power": power})
