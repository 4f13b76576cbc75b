"""Training of weights that will be stored in fewer bits: quantisation-aware training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from retort.common.weights import pack, rounded, unpack


@contextlib.contextmanager
def rounded_weights(module: nn.Module, stored: str) -> Iterator[None]:
    """Within the context the matrices of `module` have the values that they would be stored with.

    Gradients that are computed in it belong to the exact weights, which come back at its end (the straight-through
    estimator of Bengio et al. 2013, arXiv 1308.3432).

    Args:
        stored: one of `retort.common.weights.STORED`; `float32` changes nothing.
    """
    exact: dict[nn.Parameter, Tensor] = {}
    if stored in ("int8", "int4"):
        exact = {each: each.data for each in module.parameters() if each.dim() > 1}
    try:
        with torch.no_grad():
            for parameter, value in exact.items():
                parameter.data = rounded(value, stored)
        yield
    finally:
        for parameter, value in exact.items():
            parameter.data = value


def as_stored(weights: Mapping[str, Tensor], stored: str) -> dict[str, Tensor]:
    """The weights as they would be after they were stored and read, in their own types."""
    read = unpack(pack(weights, stored))
    return {name: value.to(weights[name].dtype) for name, value in read.items()}
