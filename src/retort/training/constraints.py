"""What is done to a student's weights behind every update."""

from __future__ import annotations

import torch
from torch import nn

from retort.nn.tdnnf import Bottleneck, nearer_orthogonal
from retort.training.sharding import shard_like, whole


def bottlenecks(module: nn.Module) -> list[Bottleneck]:
    """The layers of `module` that learn and whose weights are kept semi-orthogonal."""
    return [each for each in module.modules() if isinstance(each, Bottleneck) and each.weight.requires_grad]


@torch.no_grad()
def constrain(layers: list[Bottleneck]) -> None:
    """Take the step of :func:`nearer_orthogonal`; where weights are divided among processes, all must call it."""
    for layer in layers:
        weight = layer.weight
        weight.copy_(shard_like(nearer_orthogonal(whole(weight.detach())), weight))
