"""Tensors from files: whole, with the checksum they were written with, and finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retort.checksums import verify_file
from retort.errors import UserError

AGAIN = "Export or fetch it again"


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
