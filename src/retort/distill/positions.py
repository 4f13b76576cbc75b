"""Common parts of the losses over N positions: targets, precision, reduction."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["none", "sum", "mean"]


class Bank(NamedTuple):
    """Teacher vectors of previous batches, candidates for negatives.

    Attributes:
        vectors: `(M, D)`.
        sources: `(M, 2)` int64, numbered like those of the targets.
        tokens: `(M,)` int64, -1 if not known.
    """

    vectors: Tensor
    sources: Tensor
    tokens: Tensor


class FrameVectors(NamedTuple):
    """Projected frames of a batch, for losses that compare frames with the vectors of the text.

    Attributes:
        values: `(B, T, D)`, undefined after the lengths.
        lengths: `(B,)` int64.
    """

    values: Tensor
    lengths: Tensor


class Targets(NamedTuple):
    """Teacher targets of N positions, and further properties of the positions.

    Attributes:
        vectors: `(N, D)`, floating point.
        sources: `(N, 2)` int64, half-open interval of the teacher positions of each vector, or None if not needed.
        tokens: `(N,)` int64 ids of the student's tokens, or None if positions are not tokens.
        ids: for soft labels `(N, D)` int64: the tokens whose probabilities the vectors hold.
        labels: `(N,)` int64, output of each position's actual symbol, -1 for none; None if not known.
        owners: `(N,)` int64, index of the utterance of each position in the batch; None if all belong to one.
        bank: vectors of previous batches; None without a bank.
    """

    vectors: Tensor
    sources: Tensor | None
    tokens: Tensor | None
    ids: Tensor | None = None
    labels: Tensor | None = None
    owners: Tensor | None = None
    bank: Bank | None = None


class PositionLosses(NamedTuple):
    """Result of a row's loss.

    Attributes:
        values: losses `(N,)`, to be summed.
        marks: metrics, each `(N,)`, only logged.
        taken: `(N,)` or None: the weight of the teacher in each position's target; the hard label has the rest, up
            to 1.
    """

    values: Tensor
    marks: dict[str, Tensor]
    taken: Tensor | None = None


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float64 if any of them is, otherwise in float32."""
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in tensors) else torch.float32
    return tuple(each.to(dtype) for each in tensors)


def unit_vectors(vectors: Tensor) -> Tensor:
    """`(N, D)` divided by their norms; norms below 1e-6 count as 1e-6."""
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
    """Reduce the losses of positions; without any position, sum and mean are 0.

    Raises:
        ValueError: `reduction` is unknown.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / max(losses.numel(), 1)
    raise ValueError(f"reduction is {reduction!r}, must be 'none', 'sum' or 'mean'")
