"""Description of the model of a recipe, without data, weights or teachers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from retort.audio.fbank import FRAME_SHIFT
from retort.common.errors import UserError
from retort.config.distill import LABELS, compared_by
from retort.config.schema import FeatureConfig, Recipe, RowConfig
from retort.distill.objective import Objective
from retort.students.factory import build_student
from retort.students.student import Student
from retort.text.tokenizers import SPECIAL
from retort.training.lora import adapted_layers, lora_parameters


@dataclass
class Description:
    """Parameters by part, separately for the exported model and for training only, and lines of text."""

    parts: dict[str, int]
    shipped: int
    training_only: int
    lines: list[str]


def describe(recipe: Recipe) -> Description:
    """Count the parameters of a recipe exactly, on the meta device.

    Raises:
        UserError: the recipe does not set the size of its vocabulary, or the dimension or number of symbols of a
            teacher; or the pretrained model of its encoder cannot be opened.
    """
    outputs = _outputs(recipe)
    dims = {}
    for name in sorted({row.teacher for row in recipe.distill if row.teacher}):
        dim = recipe.teachers[name].dim or recipe.teachers[name].topk
        if dim is None:
            raise UserError(
                f"teachers.{name}.dim is not set", where=recipe.name, remedy="Set it, for example dim: 768"
            )
        dims[name] = dim
    with torch.device("meta"):
        student = build_student(recipe.student, outputs, recipe.features.bins)
        symbols = {
            row.teacher: student.outputs.get(row.tap) or _symbols(recipe, row)
            for row in recipe.distill
            if student.tap_units.get(row.tap) == "frame" and compared_by(row.loss) in LABELS
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
            f"{lora_parameters(layers, lora):,} parameters are trained in place of theirs"
        )
    lines += [
        f"row        {row.tap}{'' if row.pool == 'none' else f' pooled by {row.pool}'} <- "
        f"{f'{row.teacher} ({recipe.teachers[row.teacher].model})' if row.teacher else 'another view'}, {row.loss}, "
        f"{row.strength}"
        for row in recipe.distill
    ]
    return Description(parts, sum(parts.values()), _count(objective), lines)


def outline(recipe: Recipe, student: Student, outputs: int) -> list[str]:
    """The architecture of the recipe's student, one line per part.

    Args:
        outputs: number of output classes.
    """
    encoder = recipe.student.encoder
    pooling = f", pooled after {', '.join(map(str, encoder.pool_after))}" if encoder.pool_after else ""
    lines = [
        _features(recipe.features),
        f"encoder    {encoder.prose}{pooling}: one frame every {student.encoder.subsampling * FRAME_SHIFT * 1000:.0f} ms",
        student.prose,
    ]
    if stored := recipe.training.stored_layers:
        lines.insert(2, f"stored     the outputs of layers 1 to {stored}, which are frozen")
    if recipe.student.kind == "hybrid":
        return [*lines, f"graph      of {recipe.hybrid.lm}"]
    return [*lines, f"vocabulary {outputs:,} ({recipe.tokenizer.kind})"]


def _features(features: FeatureConfig) -> str:
    if features.kind == "wave":
        return f"features   the wave, {features.sampling_rate:,} samples a second"
    return f"features   {features.bins} bins every {FRAME_SHIFT * 1000:.0f} ms"


def _outputs(recipe: Recipe) -> int:
    """Number of output classes; for a hybrid student the maximum number of senones."""
    if recipe.student.kind == "hybrid":
        return recipe.hybrid.align.senones
    if recipe.tokenizer.size is None:
        raise UserError(
            "tokenizer.size is not set", where=recipe.name, remedy="Set tokenizer.size=N, or train first"
        )
    return recipe.tokenizer.size


def _symbols(recipe: Recipe, row: RowConfig) -> list[str]:
    teacher, align = recipe.teachers[row.teacher], recipe.hybrid.align
    count = teacher.symbols
    if count is None and teacher.unit == "senone":
        count = align.senones - align.states + len(SPECIAL)  # the maximum; silence has no symbol
    if count is None:
        raise UserError(
            f"teachers.{row.teacher}.symbols is not set",
            where=recipe.name,
            remedy=f"Set teachers.{row.teacher}.symbols=N, the size of its language model's vocabulary",
        )
    return [""] * count


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
