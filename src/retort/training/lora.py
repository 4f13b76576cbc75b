"""Low-rank adapters (LoRA, Hu et al. 2021) on linear layers of a student while it trains, through `peft`.

Evaluated, averaged and saved weights are merged (:func:`retort.nn.lora.merge_lora`), so that inference does not
depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from retort.common.errors import UserError
from retort.config.schema import LoraConfig
from retort.engine.parameters import check_parts, is_within
from retort.nn.lora import ADAPTERS


def adapted_layers(student: nn.Module, config: LoraConfig) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter, by name: those in `config.parts` that are not frozen.

    Raises:
        UserError: the student has no such part, or a part has no such layer.
    """
    check_parts(dict(student.named_parameters()), config.parts, "training.lora.parts")
    found: dict[str, nn.Linear] = {}
    for part in config.parts:
        layers = {
            name: module
            for name, module in student.named_modules()
            # Subclasses and the layers of WavLM's attention are not called as modules.
            if type(module) is nn.Linear
            and is_within(name, [part])
            and module.weight.requires_grad
            and "WavLMAttention" not in type(student.get_submodule(name.rpartition(".")[0])).__name__
        }
        if not layers:
            raise UserError(
                f"training.lora.parts has '{part}', which has no trainable linear layers",
                remedy="Name a part with some, such as encoder, and neither freeze nor store it",
            )
        found |= layers
    return found


def add_lora(student: nn.Module, config: LoraConfig) -> None:
    """Freeze the weights of `config.parts` and put an adapter on each of their linear layers; in place.

    The output of the student does not change.

    Raises:
        UserError: as :func:`adapted_layers`, or `peft` is missing.
    """
    layers = adapted_layers(student, config)
    try:
        from peft import LoraConfig as Adapter
        from peft import inject_adapter_in_model
    except ImportError:
        raise UserError(
            "training.lora needs the package peft", remedy='pip install "retort-asr[lora]"'
        ) from None
    learning = {
        name
        for name, parameter in student.named_parameters()
        if parameter.requires_grad and not is_within(name, config.parts)
    }
    inject_adapter_in_model(
        Adapter(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=sorted(layers)
        ),
        student,
    )
    for name, parameter in student.named_parameters():
        adapter = name.endswith(ADAPTERS)
        parameter.requires_grad_(adapter or name in learning)


def lora_parameters(layers: Mapping[str, nn.Linear], config: LoraConfig) -> int:
    """Number of parameters of the adapters of these layers."""
    return sum(config.rank * (each.in_features + each.out_features) for each in layers.values())
