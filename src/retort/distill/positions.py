"""What every loss over N positions shares: the targets it reads, its precision, its reduction."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["none", "sum", "mean"]


class Targets(NamedTuple):
    """What the teacher says of N positions, with what a loss may need to know about them.

    Attributes:
        vectors: `(N, D)`, floating point.
        sources: `(N, 2)` int64, half-open interval of teacher positions behind each vector, or None where
            nobody asks for them.
        tokens: `(N,)` int64 ids of the student's tokens, or None where a position is not a token.
        ids: `(N, D)` int64, of soft labels: the tokens whose probabilities the vectors are.
        labels: `(N,)` int64, which output each position's own symbol is, -1 for none; None where nobody knows.
        owners: `(N,)` int64, which utterance of the batch each position is of; None where all are of one.
    """

    vectors: Tensor
    sources: Tensor | None
    tokens: Tensor | None
    ids: Tensor | None = None
    labels: Tensor | None = None
    owners: Tensor | None = None


class PositionLosses(NamedTuple):
    """What a row's loss returns.

    Attributes:
        values: `(N,)`, to be summed.
        marks: each `(N,)`, to be logged only.
        taken: `(N,)` or None: the share of each position's target that is the teacher's, where the rest of it, up to 1,
            is the hard label's.
    """

    values: Tensor
    marks: dict[str, Tensor]
    taken: Tensor | None = None


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors in float64 if any of them is, otherwise in float32."""
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in tensors) else torch.float32
    return tuple(each.to(dtype) for each in tensors)


def unit_vectors(vectors: Tensor) -> Tensor:
    """`(N, D)` divided by the norms, none of which counts for less than 1e-6."""
    return F.normalize(vectors, dim=-1, eps=1e-6)


def check_pairs(student: Tensor, teacher: Tensor) -> None:
    """
    Raises:
        ValueError: the two are not floating point vectors of one shape `(N, D)`.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} are not both (N, D): "
            "pick the valid positions and project the student first"
        )
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(f"student {student.dtype} and teacher {teacher.dtype} must be floating point")


def reduce_positions(losses: Tensor, reduction: Reduction) -> Tensor:
    """Losses of positions as they are, summed or averaged; without any position, sum and mean are 0.

    Raises:
        ValueError: `reduction` is none of the three.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / max(losses.numel(), 1)
    raise ValueError(f"reduction is {reduction!r}, must be 'none', 'sum' or 'mean'")
