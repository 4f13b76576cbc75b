"""Merging of low-rank adapters (LoRA, Hu et al. 2021), as named by `peft`, into the weights of linear layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from retort.config.schema import LoraConfig

ADAPTERS = (".lora_A.default.weight", ".lora_B.default.weight")
"""Suffixes of the names of an adapter's two matrices."""
_BASE = ".base_layer."


def merge_lora(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Merge the adapters in a student's weights: W + alpha / rank * B A; other weights stay unchanged."""
    merged: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith(ADAPTERS):
            continue
        layer, base, kind = name.rpartition(_BASE)
        if base and kind == "weight":
            first, second = (weights[f"{layer}{each}"].double() for each in ADAPTERS)
            value = (value.double() + config.alpha / config.rank * (second @ first)).to(value.dtype)
        merged[f"{layer}.{kind}" if base else name] = value
    return merged
