"""Cross-entropy of a student with its own labels, smoothed evenly."""

from __future__ import annotations

from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Sum of :func:`smoothed_cross_entropies` over the positions."""
    return smoothed_cross_entropies(logits, targets, smoothing).sum()


def smoothed_cross_entropies(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """`(N,)`: cross-entropy of each position with uniform smoothing over the other V - 1 labels.

    Args:
        logits: `(N, V)` float32.
        targets: `(N,)` int64.
        smoothing: mass that goes to the other labels in equal shares (the reference's form).
    """
    log_probs = logits.log_softmax(-1)
    nll = -log_probs.gather(-1, targets[:, None]).squeeze(-1)
    share = smoothing / (logits.shape[-1] - 1)
    return (1.0 - smoothing - share) * nll - share * log_probs.sum(-1)
