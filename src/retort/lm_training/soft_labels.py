"""Soft labels for causal language models: the distributions of a larger language model over the same tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.lm.causal import CausalLM
from retort.lm.config import SoftLabelConfig
from retort.lm.factory import is_causal_lm, open_causal_lm
from retort.lm.neural import CausalBatch


class SoftLabels:
    """The loss of soft labels by a teacher (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args:
        config: teacher, weight and temperature.
        teacher: the teacher, with the tokens of the model that is trained.
    """

    def __init__(self, config: SoftLabelConfig, teacher: CausalLM) -> None:
        self.config, self.teacher = config, teacher
        self._device: torch.device | None = None

    def mix(self, hard: Tensor, logits: Tensor, batch: CausalBatch) -> Tensor:
        """The summed loss of hard and soft labels.

        Args:
            hard: summed cross-entropy of the targets.
            logits: `(M, V)` of the model at the M targets.
            batch: the batch with these targets.
        """
        if self._device != logits.device:
            self._device = logits.device
            self.teacher.start(0, logits.device)
        weight, temperature = self.config.weight, self.config.temperature
        labels = (self.teacher.distributions(batch.previous)[batch.mask] / temperature).softmax(-1)
        own = (logits.float() / temperature).log_softmax(-1)
        return (1 - weight) * hard - weight * temperature**2 * (labels * own).sum()


def open_soft_labels(config: SoftLabelConfig, root: Path, symbols: list[str]) -> SoftLabels | None:
    """The soft labels of a recipe, or None without a teacher.

    Args:
        config: of the recipe.
        root: folder of the experiments, in which the teacher may be.
        symbols: tokens by id of the model that is trained.

    Raises:
        UserError: there is no such teacher, or it has other tokens.
    """
    if not config.model:
        return None
    folder = next((each for each in (root / config.model, Path(config.model)) if is_causal_lm(each)), None)
    if folder is None:
        raise UserError(
            f"there is no causal language model {config.model}",
            where="soft_labels.model",
            remedy="Train it first with retort lm train, kind causal or ngram",
        )
    teacher = open_causal_lm(folder)
    if teacher.symbols != symbols:
        raise UserError(
            f"its {len(teacher.symbols)} tokens differ from the {len(symbols)} of the model that is trained",
            where=folder,
            remedy="Train both with the same tokenizer: {kind: student, model: EXPERIMENT}",
        )
    return SoftLabels(config, teacher)
