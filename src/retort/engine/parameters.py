"""Parts of a student, given by prefixes of parameter names: freezing, learning rates, constraints."""

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
"""Key of an optimiser group: its learning rate relative to the schedule."""


def freeze(student: nn.Module, parts: Sequence[str]) -> None:
    """Freeze the parameters whose names begin with one of `parts`.

    Raises:
        UserError: a part matches no parameter, or no trainable parameter remains.
    """
    check_parts(dict(student.named_parameters()), parts, "training.freeze")
    for name, parameter in student.named_parameters():
        if is_within(name, parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise UserError("training.freeze leaves no trainable parameter", remedy="Name fewer parts")


def parameter_groups(module: Any, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trainable parameters of `module`, in groups with the same `share` of the learning rate.

    Args:
        module: with a `student`; other parameters (projections of rows) have a share of 1.
        rates: shares by part of the student; the longest matching part applies.

    Raises:
        UserError: a part matches no parameter, or a share is not positive.
    """
    check_parts(dict(module.student.named_parameters()), list(rates), "training.rates")
    for part, share in rates.items():
        if share <= 0.0:
            remedy = f"Set a share above 0, or training.freeze=[{part}]"
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
    """Check that each part has a weight.

    Raises:
        UserError: a part matches no name.
    """
    names = list(names)
    for part in parts:
        if not any(is_within(name, [part]) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise UserError(f"{setting} has the unknown part '{part}'", remedy=f"Parts are {', '.join(tops)}")


def constrained_layers(module: nn.Module) -> list[Bottleneck | Bypass]:
    """The trainable layers of `module` whose weights are constrained to be semi-orthogonal, or within limits."""
    layers = [each for each in module.modules() if isinstance(each, Bottleneck | Bypass)]
    return [each for each in layers if each.weight.requires_grad]


@torch.no_grad()
def constrain(layers: Sequence[Bottleneck | Bypass], step: int) -> None:
    """Take the step of :func:`nearer_orthogonal`, or clamp the weights of a bypass to its limits.

    If weights are sharded, all processes must call it.

    Args:
        step: number of the update, counted from 0.
    """
    for layer in layers:
        weight = layer.weight
        if isinstance(layer, Bypass):
            shard_of(weight).clamp_(*layer.limits(step))
        else:
            weight.copy_(shard_like(nearer_orthogonal(whole(weight.detach())), weight))
