"""Optimisers and learning rate schedules; ScaledAdam scales updates by the size of a parameter and learns the size.

Yao et al., "Zipformer: A faster and better encoder for automatic speech recognition", ICLR 2024, arXiv 2310.11230, section
3.5 and algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retort.config.schema import LoopConfig
from retort.engine.sharding import shard_of, sum_over_shards

ETA = 0.1
"""Learning rate of the sizes and of scalar parameters, relative to the rate."""
LEAST, MOST = 1e-5, 3.0
"""Limits of the root mean square of parameters, as in the authors' implementation; the paper has none."""


class ScaledAdam(torch.optim.Optimizer):
    """Adam whose update of a parameter is multiplied by the parameter's root mean square.

    The size of a parameter is also updated by Adam, as if it were a factor: its gradient is the scalar
    product of gradient and parameter. A parameter below `LEAST` is updated as if its size were `LEAST`, and not shrunk
    further; one above `MOST` is shrunk. A scalar parameter is updated by Adam at `ETA`
    times the rate. There is no weight decay. The paper's clipping by the median of past norms is not implemented.

    Args:
        groups: parameters, or groups of them, as for any optimiser of torch; shards of FSDP 2 are supported.
        lr: learning rate relative to the size of a parameter; 0.045 in the paper.
        betas: of the first and the second moments.
        eps: added to the root of the second moments.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; all processes that share parameters must call it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in ("mean", "square"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state[f"scale_{name}"] = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        return state

    def _update(self, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self._state(each) for each in parameters]
        values = [shard_of(each) for each in parameters]
        gradients = [shard_of(each.grad) for each in parameters if each.grad is not None]
        first, second = group["betas"]
        for state in states:
            state["step"] += 1
        steps = [float(state["step"]) for state in states]
        rates = values[0].new_tensor(
            [group["lr"] * (1 - second**step) ** 0.5 / (1 - first**step) for step in steps]
        )

        squares = torch.stack(torch._foreach_norm(values)).square()
        slopes = torch.stack([torch.dot(*(x.flatten() for x in pair)) for pair in zip(values, gradients)])
        squares, slopes = sum_over_shards(torch.cat((squares, slopes)), parameters[0]).chunk(2)
        counts = squares.new_tensor([each.numel() for each in parameters])
        sizes = (squares / counts).sqrt()
        growth = self._growth(states, slopes, sizes, rates, group)
        growth = growth.masked_fill(counts == 1, 0.0)
        shares = torch.where(counts == 1, ETA, sizes.clamp(min=LEAST))

        means, variances = ([shard_of(state[name]) for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(variances, second)
        torch._foreach_addcmul_(variances, gradients, gradients, 1 - second)
        divisors = torch._foreach_sqrt(variances)
        torch._foreach_add_(divisors, group["eps"])
        changes = torch._foreach_div(means, divisors)
        torch._foreach_mul_(changes, (-rates * shares).tolist())
        torch._foreach_mul_(values, (1 + growth).tolist())
        torch._foreach_add_(values, changes)

    def _growth(
        self,
        states: Sequence[dict[str, Tensor]],
        slopes: Tensor,
        sizes: Tensor,
        rates: Tensor,
        group: dict[str, Any],
    ) -> Tensor:
        """Relative change of each parameter's size: equation 7, and the limits. All are `(N,)`."""
        first, second = group["betas"]
        mean = torch.stack([state["scale_mean"] for state in states]).lerp(slopes, 1 - first)
        square = torch.stack([state["scale_square"] for state in states]) * second
        square = square + (1 - second) * slopes.square()
        for name, moments in (("scale_mean", mean), ("scale_square", square)):
            torch._foreach_copy_([state[name] for state in states], moments.unbind())
        growth = -ETA * rates * mean / (square.sqrt() + group["eps"])
        growth = torch.where(sizes < LEAST, growth.clamp(min=0.0), growth)
        return torch.where(sizes > MOST, -ETA * group["lr"], growth)


def make_optimiser(groups: Sequence[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """Build the optimiser `config.optimiser` over groups of :func:`retort.engine.parameters.parameter_groups`."""
    betas = config.betas[0], config.betas[1]
    if config.optimiser == "scaled_adam":
        return ScaledAdam(groups, config.peak_lr, betas)
    return torch.optim.AdamW(
        groups, lr=config.peak_lr, betas=betas, weight_decay=config.weight_decay, fused=True
    )


EDEN_START = 0.5
"""Factor at the start of Eden's warm-up."""


def learning_rate(step: int, config: LoopConfig, epoch: int = 0) -> float:
    """Learning rate of update `step` in `epoch`, both counted from 0.

    `tri_stage`: linear from `floor_share` of the peak over `warmup_steps`, held for `hold_steps`, then
    exponential decay to `floor_share` at the last step (CIF-HKD, optimisation). `cosine`: linear from zero over
    `warmup_steps`, then half a cosine to zero. `eden`: see :func:`eden`, the only one that depends on the epoch.
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

    The warm-up is linear from a half to 1 over `warmup_steps`. It does not depend on the length of the run. Source: Yao
    et al. 2023 (Zipformer), equation 8.
    """
    falling = 1.0
    for done, turn in ((step, config.eden_steps), (epoch, config.eden_epochs)):
        falling *= (1.0 + (done / turn) ** 2) ** -0.25
    warm = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    return config.peak_lr * falling * (EDEN_START + (1.0 - EDEN_START) * warm)
