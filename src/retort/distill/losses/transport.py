"""Optimal transport between the frames of the encoder and the vectors of the text; no alignment is needed.

Lu et al., "Cross-modal alignment with optimal transport for CTC-based ASR" (arXiv 2309.13650) and "Hierarchical
cross-modality knowledge transfer with Sinkhorn attention for CTC-based ASR" (arXiv 2309.16093): the coupling of least
cosine cost with entropic regularisation projects the frames to the positions of the text, where they are compared by
their cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import (
    FrameVectors,
    PositionLosses,
    Reduction,
    Targets,
    full_precision,
    reduce_positions,
    unit_vectors,
)
from retort.distill.registry import row_loss
from retort.nn.masks import valid_mask

ITERATIONS = 20
"""Iterations of Sinkhorn's algorithm; the gradient goes through all of them."""
_NOTHING = -1e30
"""Logarithm of zero, finite so that no gradient is NaN."""


def sinkhorn(
    cost: Tensor, rows: Tensor, columns: Tensor, entropy: float, iterations: int = ITERATIONS
) -> Tensor:
    """Coupling of least `sum(coupling * cost) - entropy H(coupling)` with uniform marginals, in log space.

    Cuturi, "Sinkhorn distances", NeurIPS 2013 (arXiv 1306.0895). After the last iteration the sums over rows are exact
    and those over columns approximate.

    Args:
        cost: `(B, T, N)`, float32 or float64; not used outside the valid rows and columns.
        rows: `(B, T)` bool, valid rows of each problem.
        columns: `(B, N)` bool, valid columns.
        entropy: weight of the entropy, above 0.

    Returns:
        `(B, T, N)`: the coupling, with sum 1, zero outside; a problem without rows or columns has none.
    """
    inside = rows[:, :, None] & columns[:, None, :]
    kernel = (-cost / entropy).masked_fill(~inside, _NOTHING)
    log_rows = -rows.sum(1).clamp(min=1).to(cost.dtype).log()[:, None]
    log_columns = -columns.sum(1).clamp(min=1).to(cost.dtype).log()[:, None]
    v = cost.new_zeros(columns.shape).masked_fill(~columns, _NOTHING)
    u = cost.new_zeros(rows.shape)
    for _ in range(iterations):
        u = (log_rows - (kernel + v[:, None, :]).logsumexp(2)).masked_fill(~rows, _NOTHING)
        v = (log_columns - (kernel + u[:, :, None]).logsumexp(1)).masked_fill(~columns, _NOTHING)
    return (kernel + u[:, :, None] + v[:, None, :]).exp().masked_fill(~inside, 0.0)


def transport_loss(
    frames: Tensor,
    frame_lengths: Tensor,
    vectors: Tensor,
    valid: Tensor,
    *,
    entropy: float = 0.1,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """One minus the cosine between each vector of the text and the frames that are coupled to it.

    Args:
        frames: `(B, T, D)` projected frames of the encoder, undefined after `frame_lengths (B,)`; any floating dtype.
        vectors: `(B, N, D)` teacher vectors.
        valid: `(B, N)` bool, positions with a vector.
        entropy: weight of the entropy of the coupling, above 0; the cost is between 0 and 2.
        reduction: over the valid positions.

    Returns:
        The loss, `(number of valid positions,)` in their order for `reduction="none"`, otherwise a scalar; and the cost
        of the coupling `(B,)`, without gradient. Float64 if an input is, else float32.

    Raises:
        ValueError: the shapes do not match, or the entropy is out of range.
    """
    if frames.dim() != 3 or vectors.shape[::2] != frames.shape[::2] or valid.shape != vectors.shape[:2]:
        raise ValueError(
            f"frames {tuple(frames.shape)}, vectors {tuple(vectors.shape)}, valid {tuple(valid.shape)} must be (B, T, D), "
            "(B, N, D), (B, N)"
        )
    if not entropy > 0:
        raise ValueError(f"entropy is {entropy}, must be above 0")
    frames, vectors = full_precision(frames, vectors)
    rows = valid_mask(frame_lengths, frames.shape[1])
    frames = frames.masked_fill(~rows[..., None], 0.0)
    vectors = vectors.masked_fill(~valid[..., None], 0.0)
    with torch.autocast(frames.device.type, enabled=False):
        cost = 1 - unit_vectors(frames) @ unit_vectors(vectors).transpose(1, 2)
        coupling = sinkhorn(cost, rows, valid, entropy)
        coupled = coupling.transpose(1, 2) @ frames
        losses = 1 - (unit_vectors(coupled) * unit_vectors(vectors)).sum(-1)
    return reduce_positions(losses[valid], reduction), (coupling * cost).detach().sum((1, 2))


@row_loss("frames", temperature=0.1, scale_free=True)
def transport_row(frames: FrameVectors, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: transport`; logs the `cost` of the coupling."""
    assert targets.owners is not None
    batch = len(frames.values)
    counts = targets.owners.bincount(minlength=batch)
    valid = valid_mask(counts, int(counts.max()) if batch else 0)
    vectors = targets.vectors.new_zeros(*valid.shape, targets.vectors.shape[-1])
    vectors[valid] = targets.vectors
    losses, cost = transport_loss(
        frames.values, frames.lengths, vectors, valid, entropy=config.temperature, reduction="none"
    )
    return PositionLosses(losses, {"cost": cost[targets.owners]})
