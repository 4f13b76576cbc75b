"""Consistency between two augmented views of an utterance, each the target of the other; there is no teacher.

Yao et al., "CR-CTC: Consistency regularization on CTC for improved speech recognition" (arXiv 2410.05101), equation 4:
the mean of the two KL divergences between the posteriors of the CTC head, frame by frame, without gradient to the
target. On the logits of a decoder's tokens it is R-Drop (Liang et al. 2021, arXiv 2106.14448) with stop-gradient.
"""

from __future__ import annotations

from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import PositionLosses, Reduction, Targets, full_precision, reduce_positions
from retort.distill.registry import row_loss


def consistency_loss(logits: Tensor, other: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """KL divergence of the distribution of one view from that of the other view, nats.

    The loss of a pair of views is the mean over both directions, which is the mean over their positions.

    Args:
        logits: `(..., V)` of a view, any floating dtype.
        other: `(..., V)` of the other view at the same positions; gets no gradient.
        reduction: over all positions.

    Returns:
        `(...)` for `reduction="none"`, otherwise a scalar; float64 if an input is, else float32.

    Raises:
        ValueError: the shapes differ.
    """
    if logits.shape != other.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and other {tuple(other.shape)} must have one shape")
    logits, other = full_precision(logits, other.detach())
    target = other.log_softmax(-1)
    divergence = (target.exp() * (target - logits.log_softmax(-1))).sum(-1)
    return reduce_positions(divergence, reduction)


@row_loss("views")
def consistency_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: consistency`; logs `agreement`: the share of positions where both views have the same best
    symbol."""
    losses = consistency_loss(student, targets.vectors, reduction="none")
    return PositionLosses(losses, {"agreement": student.argmax(-1) == targets.vectors.argmax(-1)})
