"""Weights in files: whole, with the checksum they were written with, finite; in float32, float16 or int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retort.checksums import verify_file
from retort.errors import UserError

AGAIN = "Export or fetch it again"
STORED = ("float32", "float16", "int8")
"""How the weights of a model may be stored."""
_SCALE = ".scale"
_LEAST_SIZE = 1024
"""Tensors with fewer numbers, and those of one dimension, are stored in float16 where the others are int8."""


def read_weights(path: Path, remedy: str = AGAIN) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Args:
        remedy: what to do where the file is damaged.

    Raises:
        UserError: the file is missing, cut short or damaged, or a value is NaN or infinite.
    """
    verify_file(path, remedy)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError("no such file", where=path, remedy=remedy) from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"not a whole safetensors file ({error})", where=path, remedy=remedy) from None
    check_finite(weights, path, remedy)
    return weights


def check_finite(weights: Mapping[str, Tensor], where: str | Path, remedy: str = AGAIN) -> None:
    """Refuse weights of which a value is NaN or infinite.

    Raises:
        UserError: names the first tensor that has one.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"its weights have values that are not finite ({name})", where=where, remedy=remedy
            )


def fit(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that weights have the names, shapes and types of a module's own, float16 for float32 allowed.

    Raises:
        ValueError: names the first that does not fit.
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
