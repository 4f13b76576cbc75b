"""What a recipe builds, without data, weights or teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from retort.audio.fbank import FRAME_SHIFT
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig, Recipe, RowConfig
from retort.config.student import EncoderConfig
from retort.distill.objective import Objective
from retort.students.factory import build_student
from retort.students.student import Student
from retort.text.tokenizers import SPECIAL
from retort.training.lora import adapted_layers, lora_parameters


@dataclass
class Description:
    """Parameters by part, shipped and training-only ones apart, and lines of prose."""

    parts: dict[str, int]
    shipped: int
    training_only: int
    lines: list[str]


def describe(recipe: Recipe) -> Description:
    """Count the parameters of a recipe exactly, on the meta device.

    Raises:
        UserError: the recipe does not state the size of its vocabulary, or the width of a teacher or how many symbols
            it has; or the pretrained model that is its encoder cannot be opened.
    """
    outputs = _outputs(recipe)
    dims = {}
    for name in sorted({row.teacher for row in recipe.distill}):
        dim = recipe.teachers[name].dim or recipe.teachers[name].topk
        if dim is None:
            raise UserError(
                f"teachers.{name}.dim is not stated", where=recipe.name, remedy="State it, e.g. dim: 768"
            )
        dims[name] = dim
    with torch.device("meta"):
        student = build_student(recipe.student, outputs, recipe.features.bins)
        symbols = {
            row.teacher: student.outputs.get(row.tap) or _symbols(recipe, row)
            for row in recipe.distill
            if student.tap_units.get(row.tap) == "frame" and row.pool == "none"
        }
        objective = Objective(
            recipe.distill,
            student.tap_dims,
            dims,
            student.tap_units,
            outputs=student.outputs,
            symbols=symbols,
        )
    parts = {name: _count(child) for name, child in student.named_children()}
    lines = outline(recipe, student, outputs)
    if (lora := recipe.training.lora).parts:
        layers = adapted_layers(student, lora)
        lines.append(
            f"adapters   LoRA of rank {lora.rank} on {len(layers)} linear layers of {', '.join(lora.parts)}: "
            f"{lora_parameters(layers, lora):,} numbers learn in place of theirs"
        )
    lines += [
        f"row        {row.tap}{'' if row.pool == 'none' else f' pooled by {row.pool}'} <- {row.teacher} "
        f"({recipe.teachers[row.teacher].model}), {row.loss}, weight {row.weight:g}"
        for row in recipe.distill
    ]
    return Description(parts, sum(parts.values()), _count(objective), lines)


def outline(recipe: Recipe, student: Student, outputs: int) -> list[str]:
    """The architecture of the recipe's student, a line each.

    Args:
        outputs: classes of its output.
    """
    encoder = recipe.student.encoder
    pooling = f", pooled after {', '.join(map(str, encoder.pool_after))}" if encoder.pool_after else ""
    heard = [
        _features(recipe.features),
        f"encoder    {_layers(encoder)}{pooling}: one frame every {student.encoder.subsampling * FRAME_SHIFT * 1000:.0f} ms",
        student.prose,
    ]
    if stored := recipe.training.stored_layers:
        heard.insert(2, f"stored     the outputs of layers 1 to {stored}, which do not learn")
    if recipe.student.kind == "hybrid":
        return [*heard, f"graph      of {recipe.hybrid.lm}"]
    return [*heard, f"vocabulary {outputs:,} ({recipe.tokenizer.kind})"]


def _features(features: FeatureConfig) -> str:
    if features.kind == "wave":
        return f"features   the wave, {features.sampling_rate:,} samples a second"
    return f"features   {features.bins} bins every {FRAME_SHIFT * 1000:.0f} ms"


def _layers(encoder: EncoderConfig) -> str:
    """How many, of which kind and sizes."""
    if encoder.kind == "pretrained":
        layers = f"{encoder.layers} layers, " if encoder.layers > 1 else ""
        return f"{encoder.model or 'pretrained'}, {layers}dim {encoder.dim}"
    if encoder.kind == "zipformer":
        return _stacks(encoder)
    start = f"{encoder.layers} {encoder.kind} layers, dim {encoder.dim}, "
    if encoder.kind == "tdnnf":
        return f"{start}bottleneck {encoder.bottleneck}"
    sizes = [f"{encoder.heads} heads"]
    if encoder.kind != "branchformer":
        sizes.append(f"feed-forward {encoder.feedforward}")
    if encoder.kind.endswith("branchformer"):
        sizes.append(f"cgMLP {encoder.cgmlp}")
    return start + ", ".join(sizes)


def _stacks(encoder: EncoderConfig) -> str:
    own = encoder.zipformer
    stacks: dict[str, Sequence[int | str]] = {
        "blocks": own.blocks,
        "rates": [f"1/{each}" for each in own.downsampling],
        "dims": own.dims,
        "heads": own.heads,
        "feed-forward": own.feedforward,
    }
    sizes = (f"{name} {' '.join(map(str, numbers))}" for name, numbers in stacks.items())
    return f"{encoder.layers} zipformer stacks: {', '.join(sizes)}"


def _outputs(recipe: Recipe) -> int:
    """Classes of the student's output; of a hybrid one as many senones as it may have."""
    if recipe.student.kind == "hybrid":
        return recipe.hybrid.align.senones
    if recipe.tokenizer.size is None:
        raise UserError(
            "tokenizer.size is not stated", where=recipe.name, remedy="Give tokenizer.size=N, or train first"
        )
    return recipe.tokenizer.size


def _symbols(recipe: Recipe, row: RowConfig) -> list[str]:
    teacher, align = recipe.teachers[row.teacher], recipe.hybrid.align
    count = teacher.symbols
    if count is None and teacher.unit == "senone":
        count = align.senones - align.states + len(SPECIAL)  # as many as there may be; silence has no symbol
    if count is None:
        raise UserError(
            f"teachers.{row.teacher}.symbols is not stated",
            where=recipe.name,
            remedy=f"Give teachers.{row.teacher}.symbols=N: how many its language model knows",
        )
    return [""] * count


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
