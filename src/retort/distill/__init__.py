"""Losses that teach a recogniser with a language model. The plain functions work in any toolkit."""

from retort.distill.contrastive import contrastive_hits, contrastive_logits, contrastive_loss
from retort.distill.cosine import cosine_loss
from retort.distill.objective import Objective, ObjectiveResult
from retort.distill.regression import regression_loss
from retort.distill.row import LOSSES, Row, RowResult, Tally
from retort.distill.soft_label import soft_label_loss

__all__ = [
    "LOSSES",
    "Objective",
    "ObjectiveResult",
    "Row",
    "RowResult",
    "Tally",
    "contrastive_hits",
    "contrastive_logits",
    "contrastive_loss",
    "cosine_loss",
    "regression_loss",
    "soft_label_loss",
]
