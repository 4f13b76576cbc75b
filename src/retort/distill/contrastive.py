"""The contrastive loss: a position's own teacher vector against those of other positions in the batch.

Han et al., Interspeech 2023 (arXiv 2301.13003), acoustic contrastive distillation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retort.config import RowConfig
from retort.distill.positions import (
    PositionLosses,
    Reduction,
    Targets,
    check_pairs,
    full_precision,
    reduce_positions,
    unit_vectors,
)

# Rows whose random keys are held at a time: bounds the memory of sampling to a strip of the N x N matrix.
_STRIP = 1024


def draw_ids(
    size: int, negatives: int, *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """For each of `size` anchors, ids drawn uniformly without replacement from all `size`, its own included.

    Each anchor gets exactly `negatives` ids, or floor(0.8 size) where `size <= negatives`; anchors draw
    independently.

    Returns:
        `(size, size)` bool, true in row i at the ids that anchor i drew.
    """
    drawn = negatives if size > negatives else 4 * size // 5
    # The ids left out are as random a set as the ids drawn, and there may be far fewer of them.
    picked = min(drawn, size - drawn)
    mask = torch.zeros(size, size, dtype=torch.bool, device=device)
    for strip in mask.split(_STRIP):
        # Keys of 63 bits: no tie that topk would have to break, and so no preference for an id, in practice.
        keys = torch.empty(strip.shape, dtype=torch.int64, device=device).random_(generator=generator)
        strip.scatter_(1, keys.topk(picked, dim=1, sorted=False).indices, True)
    return mask if picked == drawn else mask.logical_not_()


def contrastive_logits(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.02,
    negatives: int = 700,
    sources: Tensor | None = None,
    tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cosines of every position with its own teacher vector and with its negatives, over the temperature.

    Negatives are drawn as :func:`draw_ids` says. A drawn id is dropped, not replaced, where it is the
    anchor's own or one that `sources` or `tokens` rule out.

    Args:
        student: `(N, D)` projected student vectors of the valid positions of a batch; any floating dtype.
        teacher: `(N, D)` teacher vectors of the same positions.
        temperature: above 0.
        negatives: ids drawn for each anchor, at least 1.
        sources: `(N, 2)` int64, half-open intervals of teacher positions; positions whose intervals overlap
            are never negatives of each other. An empty interval overlaps none.
        tokens: `(N,)` token ids; positions of one token are never negatives of each other.
        generator: of the sampling, on the student's device; by default that device's global one.

    Returns:
        `(N, N)`, float64 if an input is, otherwise float32; the positives on the diagonal, -inf where there
        is no negative.

    Raises:
        ValueError: shapes that do not belong together, or a temperature or count out of range.
    """
    check_pairs(student, teacher)
    size = student.shape[0]
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    if negatives < 1:
        raise ValueError(f"negatives is {negatives}, must be at least 1")
    if sources is not None and sources.shape != (size, 2):
        raise ValueError(f"sources {tuple(sources.shape)} must be {(size, 2)}, an interval a position")
    if tokens is not None and tokens.shape != (size,):
        raise ValueError(f"tokens {tuple(tokens.shape)} must be {(size,)}, an id a position")
    masked = draw_ids(size, negatives, device=student.device, generator=generator).logical_not_()
    if sources is not None:
        masked |= _overlap(sources)
    if tokens is not None:
        masked |= tokens[:, None] == tokens
    masked.fill_diagonal_(False)
    student, teacher = full_precision(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        logits = (unit_vectors(student) / temperature) @ unit_vectors(teacher).T
    return logits.masked_fill_(masked, -torch.inf)


def contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.02,
    negatives: int = 700,
    sources: Tensor | None = None,
    tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of picking a position's own teacher vector among its negatives, nats.

    The arguments are those of :func:`contrastive_logits`. The memory is that of a few N x N matrices; no
    tensor of N x negatives x D is made.

    Returns:
        `(N,)` for `reduction="none"`, otherwise a scalar; 0 for a position without negatives and for N = 0.

    Raises:
        ValueError: as :func:`contrastive_logits`, or an unknown reduction.
    """
    logits = contrastive_logits(
        student,
        teacher,
        temperature=temperature,
        negatives=negatives,
        sources=sources,
        tokens=tokens,
        generator=generator,
    )
    return reduce_positions(_cross_entropy(logits), reduction)


def contrastive_hits(logits: Tensor) -> Tensor:
    """`(N,)` bool: the positive is larger than every negative. A tie is no hit, so equal vectors score 0."""
    return (logits >= logits.diagonal()[:, None]).sum(1) == 1


def contrastive_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: contrastive`; logs its top-1 `accuracy`."""
    if targets.tokens is None and not config.same_token_negatives:
        raise ValueError("same_token_negatives: false needs the ids of the tokens, a position each")
    logits = contrastive_logits(
        student,
        targets.vectors,
        temperature=config.temperature,
        negatives=config.negatives,
        sources=targets.sources,
        tokens=None if config.same_token_negatives else targets.tokens,
    )
    return PositionLosses(_cross_entropy(logits), {"accuracy": contrastive_hits(logits.detach())})


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def _overlap(sources: Tensor) -> Tensor:
    """`(N, N)` bool: the intervals share a teacher position."""
    start, end = sources.unbind(1)
    empty = end <= start
    bounds = torch.iinfo(sources.dtype)
    start = start.masked_fill(empty, bounds.max)
    end = end.masked_fill(empty, bounds.min)
    begins_before_end = start[:, None] < end
    return begins_before_end & begins_before_end.T
