"""Cross-entropy with the hard label in place of the teacher's soft label: the control experiment for soft labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from retort.config.schema import RowConfig
from retort.distill.positions import PositionLosses, Targets, full_precision
from retort.distill.registry import row_loss


@row_loss("labels")
def hard_label_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: hard_label`, on logits `(N, V)`: cross-entropy, nats. Logs `correct`.

    A label of -1 (a unit that is not among the outputs) has loss 0.

    Raises:
        ValueError: the targets have no labels.
    """
    labels = targets.labels
    if labels is None:
        if len(student):
            raise ValueError("the targets have no labels of their positions")
        labels = targets.vectors.new_zeros(0).long()
    (logits,) = full_precision(student)
    losses = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    return PositionLosses(losses, {"correct": logits.argmax(-1) == labels})
