"""Conversion of audio arguments of the Python interface: paths, and arrays of any type and shape."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from retort.common.errors import BadUtterance
from retort.common.files import check_local

INTEGERS = {"int8": 2**7, "int16": 2**15, "int32": 2**31}
"""Integer types of samples, and the full scale of each."""
_REMEDY = "Use a path, or one channel of shape (N,) at the recogniser's sampling_rate: floats in [-1, 1], or int16 or int32"


def as_path(audio: object) -> str | None:
    """The path of an audio file, as its user wrote it; None of what is no path, but samples.

    Raises:
        BadUtterance: it is an address on the network, or no file can have such a name.
    """
    if not isinstance(audio, (str, bytes, os.PathLike)):
        return None
    path = os.fsdecode(audio)
    if "\0" in path:
        raise BadUtterance("no file's name has a null character", where=path, remedy="Check the path")
    check_local(path)
    return path


def as_wave(samples: object, where: str) -> np.ndarray:
    """Samples of one channel as `(N,)` float32; full scale of integers becomes 1.

    Args:
        samples: `(N,)`, `(N, 1)` or `(1, N)`: a NumPy array, a PyTorch tensor on any device, a list of floats, or
            anything that NumPy converts to an array. Floats of any size, uint8 (128 is silence), int8, int16 or int32.
        where: what the samples are called in errors.

    Raises:
        BadUtterance: the type or shape is not supported.
    """
    array = _as_array(samples, where)
    shape = array.shape
    if array.ndim == 2 and 1 in shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        channels = " (several channels)" if array.ndim == 2 else ""
        raise BadUtterance(
            f"the samples have shape {shape}{channels} and type {array.dtype}", where=where, remedy=_REMEDY
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # overflows become infinite, which is rejected later
            wave = array.astype(np.float32)
    elif array.dtype == np.uint8:
        wave = (array.astype(np.float32) - np.float32(128)) / np.float32(128)
    elif array.dtype.newbyteorder("=").name in INTEGERS:
        wave = (array / INTEGERS[array.dtype.newbyteorder("=").name]).astype(np.float32)
    elif not array.size:
        wave = np.zeros(0, np.float32)
    else:
        raise BadUtterance(
            f"the samples have type {array.dtype} and shape {shape}, whose full scale is not known",
            where=where,
            remedy=_REMEDY,
        )
    return np.ascontiguousarray(wave)


def _as_array(samples: Any, where: str) -> np.ndarray:
    torch = sys.modules.get("torch")  # if it is not loaded, the samples are no tensor
    if torch is not None and isinstance(samples, torch.Tensor):
        if samples.is_sparse or samples.is_quantized or samples.is_complex():
            raise BadUtterance(f"the samples are a {_kind(samples)}", where=where, remedy=_REMEDY)
        samples = samples.detach().cpu()
        return np.asarray(samples.float() if samples.dtype is torch.bfloat16 else samples)
    if isinstance(samples, (str, bytes, dict, set)) or samples is None:
        raise BadUtterance(f"the samples are a {_kind(samples)}", where=where, remedy=_REMEDY)
    try:
        with np.errstate(all="ignore"):
            array = (
                np.ma.filled(samples, 0) if isinstance(samples, np.ma.MaskedArray) else np.asarray(samples)
            )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise BadUtterance(
            f"the samples, a {_kind(samples)}, cannot be made an array ({reason})",
            where=where,
            remedy=_REMEDY,
        ) from None
    if array.dtype.kind not in "fiu" and array.size:
        raise BadUtterance(f"the samples are a {_kind(samples)}", where=where, remedy=_REMEDY)
    return array


def _kind(value: object) -> str:
    """The type of a value, with shape and dtype where it has any."""
    parts = [f"{name} {getattr(value, name)}" for name in ("shape", "dtype") if hasattr(value, name)]
    return f"{type(value).__name__}{' of ' + ' and '.join(parts) if parts else ''}"
