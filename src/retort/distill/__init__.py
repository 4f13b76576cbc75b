"""Losses for distilling a language model into a recogniser. The functions are independent of the rest of Retort."""

from retort.common.tally import Tally
from retort.distill.losses.consistency import consistency_loss
from retort.distill.losses.contrastive import contrastive_hits, contrastive_logits, contrastive_loss
from retort.distill.losses.cosine import cosine_loss
from retort.distill.losses.regression import regression_loss
from retort.distill.losses.relational import relational_loss
from retort.distill.losses.soft_label import soft_label_loss
from retort.distill.losses.transport import transport_loss
from retort.distill.objective import Objective, ObjectiveResult
from retort.distill.registry import LOSSES
from retort.distill.row import Row, RowResult

__all__ = [
    "LOSSES",
    "Objective",
    "ObjectiveResult",
    "Row",
    "RowResult",
    "Tally",
    "consistency_loss",
    "contrastive_hits",
    "contrastive_logits",
    "contrastive_loss",
    "cosine_loss",
    "regression_loss",
    "relational_loss",
    "soft_label_loss",
    "transport_loss",
]
