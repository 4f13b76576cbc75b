"""The weights of linear layers with low-rank adapters (LoRA, Hu et al. 2021), as `peft` names them, merged into one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from retort.config.schema import LoraConfig

ADAPTERS = (".lora_A.default.weight", ".lora_B.default.weight")
"""How the names of an adapter's two matrices end."""
_BASE = ".base_layer."


def merge_lora(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The weights of a student with adapters as those of one without: W + alpha / rank * B A; others stay as they are."""
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
