"""Parts of a student, by the first words of their parameters' names: those that are kept, learn slower, are taken over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from retort.common.errors import UserError
from retort.engine.sharding import shard_like, shard_of, whole
from retort.nn.tdnnf import Bottleneck, nearer_orthogonal
from retort.nn.zipformer import Bypass

SHARE = "share"
"""In a group of the optimiser: its learning rate as a share of the schedule's."""


def freeze(student: nn.Module, parts: Sequence[str]) -> None:
    """Let the parameters whose names begin with one of `parts` learn no more.

    Raises:
        UserError: no parameter begins so, or none would be left.
    """
    check_parts(dict(student.named_parameters()), parts, "training.freeze")
    for name, parameter in student.named_parameters():
        if is_within(name, parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise UserError("training.freeze leaves nothing to learn", remedy="Name fewer parts")


def parameter_groups(module: Any, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """What of `module` learns, in groups of one `share` of the learning rate each.

    Args:
        module: with a `student`; what is not the student's (projections of rows) learns at the whole rate.
        rates: shares by part of the student; of several that a name begins with the longest holds.

    Raises:
        UserError: no parameter begins so, or a share is not positive.
    """
    check_parts(dict(module.student.named_parameters()), list(rates), "training.rates")
    for part, share in rates.items():
        if share <= 0.0:
            remedy = f"Give a share above 0, or training.freeze=[{part}]"
            raise UserError(f"training.rates gives '{part}' {share:g}", remedy=remedy)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        own, _, rest = name.partition(".")
        within = [part for part in rates if own == "student" and is_within(rest, [part])]
        share = rates[max(within, key=len)] if within else 1.0
        if parameter.requires_grad:
            groups.setdefault(share, []).append(parameter)
    return [{"params": parameters, SHARE: share} for share, parameters in groups.items()]


def is_within(name: str, parts: Iterable[str]) -> bool:
    """Whether a weight's name begins with the words of one of `parts`."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def check_parts(names: Iterable[str], parts: Sequence[str], setting: str) -> None:
    """See that there is a weight in each part.

    Raises:
        UserError: no name begins so.
    """
    names = list(names)
    for part in parts:
        if not any(is_within(name, [part]) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise UserError(f"{setting} names '{part}'", remedy=f"Parts are {', '.join(tops)}")


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
