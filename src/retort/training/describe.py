"""What a recipe builds, without data, weights or teachers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from retort.audio.fbank import FRAME_SHIFT
from retort.config import Recipe
from retort.distill.objective import Objective
from retort.errors import UserError
from retort.students.factory import build_student


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
        UserError: the recipe does not state the size of its vocabulary or the width of a teacher.
    """
    if recipe.tokenizer.size is None:
        raise UserError(
            "tokenizer.size is not stated", where=recipe.name, remedy="Give tokenizer.size=N, or train first"
        )
    dims = {}
    for name in sorted({row.teacher for row in recipe.distill}):
        dim = recipe.teachers[name].dim or recipe.teachers[name].topk
        if dim is None:
            raise UserError(
                f"teachers.{name}.dim is not stated", where=recipe.name, remedy="State it, e.g. dim: 768"
            )
        dims[name] = dim
    with torch.device("meta"):
        student = build_student(recipe.student, recipe.tokenizer.size, recipe.features.bins)
        objective = Objective(recipe.distill, student.tap_dims, dims)
    parts = {name: _count(child) for name, child in student.named_children()}
    lines = outline(recipe, recipe.tokenizer.size, student.encoder.subsampling)
    lines += [
        f"row        {row.tap} <- {row.teacher} ({recipe.teachers[row.teacher].model}), {row.loss}, weight {row.weight:g}"
        for row in recipe.distill
    ]
    return Description(parts, sum(parts.values()), _count(objective), lines)


def outline(recipe: Recipe, vocabulary: int, subsampling: int) -> list[str]:
    """The architecture of the student, a line each.

    Args:
        vocabulary: number of ids.
        subsampling: feature frames to one of the encoder.
    """
    encoder, decoder = recipe.student.encoder, recipe.student.decoder
    output = f", output through a PLM's embeddings of {decoder.output_dim}" if decoder.output == "plm" else ""
    pooling = f", pooled after {', '.join(map(str, encoder.pool_after))}" if encoder.pool_after else ""
    return [
        f"features   {recipe.features.bins} bins every {FRAME_SHIFT * 1000:.0f} ms",
        f"encoder    {encoder.layers} {encoder.kind} layers, dim {encoder.dim}, {encoder.heads} heads, feed-forward "
        f"{encoder.feedforward}{pooling}: one frame every {subsampling * FRAME_SHIFT * 1000:.0f} ms",
        f"decoder    {decoder.layers} layers, dim {decoder.dim}, {decoder.heads} heads, feed-forward "
        f"{decoder.feedforward}{output}",
        f"vocabulary {vocabulary:,} ({recipe.tokenizer.kind})",
    ]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
