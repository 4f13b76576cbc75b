"""Learning rate over the steps."""

from __future__ import annotations

import math

from retort.config import LoopConfig


def learning_rate(step: int, config: LoopConfig) -> float:
    """The rate of update number `step`, counted from 0.

    `tri_stage`: linear from `floor_share` of the peak over `warmup_steps`, held for `hold_steps`, then
    exponential decay to `floor_share` at the last step (CIF-HKD, optimisation). `cosine`: linear from zero over
    `warmup_steps`, then half a cosine to zero.
    """
    if step < config.warmup_steps:
        start = config.floor_share if config.schedule == "tri_stage" else 0.0
        return config.peak_lr * (start + (1.0 - start) * (step + 1) / config.warmup_steps)
    held = config.hold_steps if config.schedule == "tri_stage" else 0
    decaying = max(config.steps - config.warmup_steps - held, 1)
    share = min(max(step - config.warmup_steps - held, 0) / decaying, 1.0)
    if config.schedule == "tri_stage":
        return config.peak_lr * config.floor_share**share
    return config.peak_lr * 0.5 * (1.0 + math.cos(math.pi * share))
