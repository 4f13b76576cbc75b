"""What is done to a student's weights behind every update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from retort.nn.tdnnf import Bottleneck, nearer_orthogonal
from retort.nn.zipformer_block import Bypass
from retort.training.sharding import shard_like, shard_of, whole


def constrained_layers(module: nn.Module) -> list[Bottleneck | Bypass]:
    """The layers of `module` that learn and whose weights are kept semi-orthogonal, or within limits."""
    layers = [each for each in module.modules() if isinstance(each, Bottleneck | Bypass)]
    return [each for each in layers if each.weight.requires_grad]


@torch.no_grad()
def constrain(layers: Sequence[Bottleneck | Bypass], step: int) -> None:
    """Take the step of :func:`nearer_orthogonal`, or bring the weights of a bypass back between its limits.

    Where weights are divided among processes, all must call it.

    Args:
        step: number of the update, counted from 0.
    """
    for layer in layers:
        weight = layer.weight
        if isinstance(layer, Bypass):
            shard_of(weight).clamp_(*layer.limits(step))
        else:
            weight.copy_(shard_like(nearer_orthogonal(whole(weight.detach())), weight))
