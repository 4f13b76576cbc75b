"""Weights of a model as they are stored: in float32, float16, or int8 with one scale for each output channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from retort.errors import UserError

STORED = ("float32", "float16", "int8")
"""How the weights of a model may be stored."""
_SCALE = ".scale"
_LEAST_SIZE = 1024
"""Tensors with fewer numbers, and those of one dimension, are stored in float16 where the others are int8."""


def pack(weights: Mapping[str, Tensor], stored: str) -> dict[str, Tensor]:
    """What is written of the weights.

    In int8, a matrix or a kernel `(N, ...)` becomes int8 values and float32 scales `(N,)` under its name with `.scale`
    appended: value = int8 x scale. The largest magnitude of a channel is 127.

    Args:
        weights: by name; what is not floating point stays as it is.
        stored: one of :data:`STORED`.

    Raises:
        UserError: a value is not finite, or is beyond what float16 holds.
    """
    if stored == "float32":
        return dict(weights)
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            packed[name] = tensor
        elif stored == "int8" and tensor.dim() > 1 and tensor.numel() >= _LEAST_SIZE:
            packed[name], packed[name + _SCALE] = _quantised(name, tensor)
        else:
            packed[name] = _halved(name, tensor)
    return packed


def unpack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by name, int8 ones as float32; the reverse of :func:`pack`.

    Raises:
        UserError: an int8 tensor without its scales, or scales of another shape.
    """
    restored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in weights:
            continue
        if tensor.dtype == torch.int8:
            scale = weights.get(name + _SCALE)
            if scale is None or tuple(scale.shape) != tuple(tensor.shape[:1]):
                raise UserError("an int8 tensor has no scales that fit it", where=name)
            tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        restored[name] = tensor
    return restored


def _quantised(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    values = tensor.float()
    largest = values.flatten(1).abs().amax(1)
    if not bool(largest.isfinite().all()):
        raise UserError("it has values that are not finite", where=name)
    scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / scale.view(-1, *[1] * (tensor.dim() - 1))).round().to(torch.int8), scale


def _halved(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not bool(half.isfinite().all()):
        raise UserError("it has values that float16 cannot hold", where=name)
    return half
