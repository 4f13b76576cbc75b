"""Cross-entropy with hard labels and uniform label smoothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HardLoss(NamedTuple):
    """The loss of an output with hard labels.

    Attributes:
        total: scalar, the sum over the positions that have a label.
        hard: `(B, N)`, the weighted loss of each position, 0 without a label; stored in the tap.
        correct: scalar, number of labels with the highest logit.
    """

    total: Tensor
    hard: Tensor
    correct: Tensor


def hard_loss(logits: Tensor, labels: Tensor, mask: Tensor, smoothing: float, weight: float) -> HardLoss:
    """Cross-entropy of an output, in float32 or better.

    Args:
        logits: `(B, N, V)`.
        labels: `(B, N)` int64, used where `mask (B, N)` is true.
        smoothing: as in :func:`smoothed_cross_entropies`.
        weight: weight of this loss.
    """
    targets, predicted = labels[mask], logits[mask]
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    losses = smoothed_cross_entropies(predicted, targets, smoothing)
    hard = losses.new_zeros(mask.shape).masked_scatter(mask, weight * losses)
    return HardLoss(losses.sum(), hard, (predicted.detach().argmax(-1) == targets).sum())


def smoothed_cross_entropies(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """`(N,)`: cross-entropy of each position with uniform smoothing over the other V - 1 labels.

    Args:
        logits: `(N, V)` float32.
        targets: `(N,)` int64.
        smoothing: probability mass that is distributed evenly over the other labels (the reference's form).
    """
    log_probs = logits.log_softmax(-1)
    nll = -log_probs.gather(-1, targets[:, None]).squeeze(-1)
    share = smoothing / (logits.shape[-1] - 1)
    return (1.0 - smoothing - share) * nll - share * log_probs.sum(-1)
