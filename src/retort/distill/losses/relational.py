"""Relational loss: the student's matrix of cosines between the positions of an utterance against the teacher's.

Tung and Mori, "Similarity-preserving knowledge distillation", ICCV 2019 (arXiv 1907.09682): matrices of inner products
over a batch; Park et al., "Relational knowledge distillation", CVPR 2019 (arXiv 1904.05068): relations between
examples instead of the examples. Here the examples are the tokens of one utterance and the products are cosines, which
do not depend on norms. There is no projection: student and teacher may have different dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import (
    PositionLosses,
    Reduction,
    Targets,
    full_precision,
    reduce_positions,
    unit_vectors,
)
from retort.distill.registry import row_loss


def relational_loss(
    student: Tensor, teacher: Tensor, owners: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Squared difference of cosines, averaged over the other positions of the same utterance.

    Args:
        student: `(N, D)` vectors; any floating dtype.
        teacher: `(N, E)` vectors of the same positions. A norm below 1e-6 counts as 1e-6.
        owners: `(N,)` int64, index of the utterance of each position; None if all belong to one.
        reduction: over the N positions.

    Returns:
        `(N,)` for `reduction="none"`, otherwise a scalar; 0 for a position without others and for N = 0; float64 if an
        input is, else float32.

    Raises:
        ValueError: the shapes do not match, or the reduction is unknown.
    """
    size = len(student)
    if student.dim() != 2 or teacher.dim() != 2 or len(teacher) != size:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} must be (N, D), (N, E)"
        )
    if owners is not None and owners.shape != (size,):
        raise ValueError(f"owners {tuple(owners.shape)} must be {(size,)}, one utterance per position")
    student, teacher = (unit_vectors(each) for each in full_precision(student, teacher))
    others = ~torch.eye(size, dtype=torch.bool, device=student.device)
    if owners is not None:
        others &= owners[:, None] == owners
    with torch.autocast(student.device.type, enabled=False):
        differences = student @ student.T - teacher @ teacher.T
    squares = differences.square().masked_fill(~others, 0.0)
    return reduce_positions(squares.sum(1) / others.sum(1).clamp_min(1), reduction)


@row_loss("unprojected")
def relational_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: relational`; logs `spread`: the loss of a student whose vectors are all equal."""
    losses, spread = (
        relational_loss(guess, targets.vectors, targets.owners, reduction="none")
        for guess in (student, torch.ones_like(student))
    )
    return PositionLosses(losses, {"spread": spread})
