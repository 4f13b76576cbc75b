"""Learning rate over the steps."""

from __future__ import annotations

import math

from retort.config import LoopConfig

EDEN_START = 0.5
"""Share of the rate that Eden's warm-up begins with."""


def learning_rate(step: int, config: LoopConfig, epoch: int = 0) -> float:
    """The rate of update number `step` in `epoch`, both counted from 0.

    `tri_stage`: linear from `floor_share` of the peak over `warmup_steps`, held for `hold_steps`, then
    exponential decay to `floor_share` at the last step (CIF-HKD, optimisation). `cosine`: linear from zero over
    `warmup_steps`, then half a cosine to zero. `eden`: see :func:`eden`; it alone knows the epoch.
    """
    if config.schedule == "eden":
        return eden(step, epoch, config)
    if step < config.warmup_steps:
        start = config.floor_share if config.schedule == "tri_stage" else 0.0
        return config.peak_lr * (start + (1.0 - start) * (step + 1) / config.warmup_steps)
    held = config.hold_steps if config.schedule == "tri_stage" else 0
    decaying = max(config.steps - config.warmup_steps - held, 1)
    share = min(max(step - config.warmup_steps - held, 0) / decaying, 1.0)
    if config.schedule == "tri_stage":
        return config.peak_lr * config.floor_share**share
    return config.peak_lr * 0.5 * (1.0 + math.cos(math.pi * share))


def eden(step: int, epoch: int, config: LoopConfig) -> float:
    """`peak_lr` x (1 + (step / eden_steps)^2)^(-1/4) x (1 + (epoch / eden_epochs)^2)^(-1/4) x warm-up.

    The warm-up is linear from a half to 1 over `warmup_steps`. Where the run ends makes no difference. Source: Yao
    et al. 2023 (Zipformer), equation 8.
    """
    falling = 1.0
    for done, turn in ((step, config.eden_steps), (epoch, config.eden_epochs)):
        falling *= (1.0 + (done / turn) ** 2) ** -0.25
    warm = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    return config.peak_lr * falling * (EDEN_START + (1.0 - EDEN_START) * warm)
