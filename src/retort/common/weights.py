"""Weights in safetensors files in float32, float16, int8 or int4, with checks of checksum and finite values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retort.common.checksums import verify_file
from retort.common.errors import UserError

AGAIN = "Export or fetch it again"
STORED = ("float32", "float16", "int8", "int4")
"""Storage formats of the weights of a model."""
GROUP = 32
"""Number of weights of a row that share a scale in int4."""
_SCALE = ".scale"
_LEAST_SIZE = 1024
"""Smaller tensors, and those of one dimension, are stored in float16 when others are int8."""


def read_weights(path: Path, remedy: str = AGAIN) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        remedy: advice for a damaged file.

    Raises:
        UserError: the file is missing, incomplete or damaged, or a value is NaN or infinite.
    """
    verify_file(path, remedy)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError("no such file", where=path, remedy=remedy) from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"not a complete safetensors file ({error})", where=path, remedy=remedy) from None
    check_finite(weights, path, remedy)
    return weights


def check_finite(weights: Mapping[str, Tensor], where: str | Path, remedy: str = AGAIN) -> None:
    """Refuse weights with values that are NaN or infinite.

    Raises:
        UserError: with the first such tensor.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"its weights have values that are not finite ({name})", where=where, remedy=remedy
            )


def fit(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that weights have the names, shapes and types of a module's; float16 is accepted for float32.

    Raises:
        ValueError: with the first tensor that does not match.
    """
    own = module.state_dict()
    for name in dict.fromkeys([*own, *weights]):
        if name not in own or name not in weights:
            raise ValueError(f"{name} is {'missing' if name in own else 'not known'}")
        if own[name].shape != weights[name].shape:
            raise ValueError(f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}")
        if own[name].is_floating_point() != weights[name].is_floating_point():
            raise ValueError(f"{name} is of {weights[name].dtype}, not {own[name].dtype}")


def pack(weights: Mapping[str, Tensor], stored: str) -> dict[str, Tensor]:
    """Convert weights to their storage format.

    In int8, a matrix or a kernel `(N, ...)` becomes int8 values and float32 scales `(N,)` under its name with `.scale`
    appended: value = int8 x scale. The largest magnitude of a channel is 127. In int4, a matrix `(N, M)` whose M is a
    multiple of 32 becomes uint8 `(N, M / 2)`, two values of -8 to 7 in each (the first in the lower four bits, plus 8), and
    float16 scales `(N, M / 32)`; all others are stored as in int8.

    Args:
        weights: tensors by name; those that are not floating point are not changed.
        stored: one of :data:`STORED`.

    Raises:
        UserError: a value is not finite, or exceeds the range of float16.
    """
    if stored == "float32":
        return dict(weights)
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            packed[name] = tensor
        elif stored == "int4" and _is_grouped(tensor):
            packed[name], packed[name + _SCALE] = _in_groups(name, tensor)
        elif stored in ("int8", "int4") and tensor.dim() > 1 and tensor.numel() >= _LEAST_SIZE:
            packed[name], packed[name + _SCALE] = _quantised(name, tensor)
        else:
            packed[name] = _halved(name, tensor)
    return packed


def unpack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by name, int8 and int4 ones as float32; the reverse of :func:`pack`.

    Raises:
        UserError: an int8 or int4 tensor lacks its scales, or they have another shape.
    """
    restored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in weights:
            continue
        scale = weights.get(name + _SCALE)
        if tensor.dtype == torch.uint8:
            if scale is None or scale.dim() != 2 or tensor.shape != (len(scale), scale.shape[1] * GROUP // 2):
                raise UserError("an int4 tensor has no matching scales", where=name)
            values = torch.stack((tensor & 15, tensor >> 4), -1).view(*scale.shape, GROUP).float() - 8
            tensor = (values * scale.float()[..., None]).flatten(1)
        elif tensor.dtype == torch.int8:
            if scale is None or tuple(scale.shape) != tuple(tensor.shape[:1]):
                raise UserError("an int8 tensor has no matching scales", where=name)
            tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        restored[name] = tensor
    return restored


def rounded(tensor: Tensor, stored: str) -> Tensor:
    """About what :func:`unpack` gives of `tensor` after :func:`pack`, but fast: in int4 with that scale of a group at which
    its largest magnitude is the level -8."""
    if stored == "int4" and _is_grouped(tensor):
        values = tensor.unflatten(1, (-1, GROUP))
        scale = values.gather(-1, values.abs().argmax(-1, keepdim=True)) / -8.0
        levels = (values / scale.where(scale != 0.0, 1.0)).round_().clamp_(-8, 7)
        return (levels * scale).flatten(1)
    return unpack(pack({"weight": tensor}, stored))["weight"].to(tensor.dtype)


def _is_grouped(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.shape[1] % GROUP == 0 and tensor.numel() >= _LEAST_SIZE


def _in_groups(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Int4 values and scales: from candidate scales for each group, those with the least squared error."""
    values = tensor.float().unflatten(1, (-1, GROUP))
    if not bool(values.isfinite().all()):
        raise UserError("it has values that are not finite", where=name)
    extreme = values.gather(-1, values.abs().argmax(-1, keepdim=True))[..., 0]
    best = torch.full_like(extreme, float("inf"))
    scales, levels = torch.zeros_like(extreme), torch.zeros_like(values)
    for levels_to_extreme in (-8.0, 7.0, -7.0, 6.0, -6.0, -8.5, -9.0, -7.5, 7.5, 8.0, -10.0):
        scale = (extreme / levels_to_extreme).half().float()
        found = (values / torch.where(scale == 0.0, 1.0, scale)[..., None]).round().clamp(-8, 7)
        error = (found * scale[..., None] - values).square().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, scale, scales)
        levels = torch.where(better[..., None], found, levels)
    nibbles = (levels.flatten(1) + 8).to(torch.uint8).unflatten(1, (-1, 2))
    return nibbles[..., 0] | (nibbles[..., 1] << 4), _halved(name, scales)


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
        raise UserError("it has values that exceed the range of float16", where=name)
    return half
