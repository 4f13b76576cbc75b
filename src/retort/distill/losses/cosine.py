"""One minus the cosine between student and teacher vectors.

Han et al., Interspeech 2023 (arXiv 2301.13003), the ablation of the acoustic loss.
"""

from __future__ import annotations

from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import (
    PositionLosses,
    Reduction,
    Targets,
    check_pairs,
    full_precision,
    reduce_positions,
    unit_vectors,
)
from retort.distill.registry import row_loss


def cosine_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """1 - cosine of every position: 0 for the same direction, 1 for a right angle, 2 for the opposite.

    Args:
        student: `(N, D)` projected student vectors; any floating dtype.
        teacher: `(N, D)` teacher vectors. A norm below 1e-6 counts as 1e-6: a zero vector has cosine 0.
        reduction: over the N positions.

    Returns:
        `(N,)` for `reduction="none"`, otherwise a scalar (0 for N = 0); float64 if an input is, else float32.

    Raises:
        ValueError: the shapes do not match, or the reduction is unknown.
    """
    check_pairs(student, teacher)
    student, teacher = full_precision(student, teacher)
    return reduce_positions(1 - (unit_vectors(student) * unit_vectors(teacher)).sum(1), reduction)


@row_loss(scale_free=True)
def cosine_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: cosine`."""
    return PositionLosses(cosine_loss(student, targets.vectors, reduction="none"), {})
