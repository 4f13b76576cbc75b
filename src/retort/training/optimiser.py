"""The optimisers that a recipe may choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from retort.config import LoopConfig
from retort.training.scaled_adam import ScaledAdam


def make_optimiser(groups: Sequence[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """What `config.optimiser` names, over groups of :func:`retort.training.parts.parameter_groups`."""
    betas = config.betas[0], config.betas[1]
    if config.optimiser == "scaled_adam":
        return ScaledAdam(groups, config.peak_lr, betas)
    return torch.optim.AdamW(
        groups, lr=config.peak_lr, betas=betas, weight_decay=config.weight_decay, fused=True
    )
