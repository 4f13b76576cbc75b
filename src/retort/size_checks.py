"""Sizes of a student that cannot be."""

from __future__ import annotations

from retort.errors import UserError
from retort.student_config import EncoderConfig, StudentConfig


def check_sizes(student: StudentConfig, where: str) -> None:
    """Sizes that cannot be, by themselves or beside another.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    encoder = student.encoder
    for key, part in (("encoder", encoder), ("decoder", student.decoder)):
        if part is encoder and encoder.kind in ("tdnnf", "zipformer", "pretrained"):
            continue
        if part.dim % part.heads or (part.dim // part.heads) % 2:
            raise UserError(
                f"student.{key}.dim {part.dim} over {part.heads} heads is not an even number",
                where=where,
                remedy="Choose dim a multiple of 2 x heads",
            )
    kernels = {
        "encoder.kernel": encoder.kernel,
        "encoder.cgmlp_kernel": encoder.cgmlp_kernel,
        "encoder.merge_kernel": encoder.merge_kernel,
        "cif.kernel": student.cif.kernel,
    }
    for key, kernel in kernels.items():
        if kernel % 2 == 0:
            raise UserError(f"student.{key} is {kernel}", where=where, remedy="Choose an odd number")
    if encoder.cgmlp % 2:
        raise UserError(
            f"student.encoder.cgmlp is {encoder.cgmlp}", where=where, remedy="Choose an even number"
        )
    pooled = encoder.pool_after
    if len(set(pooled)) < len(pooled) or not all(1 <= layer <= encoder.layers for layer in pooled):
        raise UserError(
            f"student.encoder.pool_after is {list(pooled)}",
            where=where,
            remedy=f"Name different layers from 1 to {encoder.layers}",
        )
    if encoder.bottleneck > 2 * encoder.dim and encoder.kind == "tdnnf":
        raise UserError(
            f"student.encoder.bottleneck is {encoder.bottleneck}",
            where=where,
            remedy=f"Choose from 1 to {2 * encoder.dim}, twice the dim",
        )
    if not encoder.dilations:
        raise UserError(
            f"student.encoder.dilations is {list(encoder.dilations)}",
            where=where,
            remedy="Name a number from 1 on for each layer; the last holds for the rest",
        )
    if encoder.kind == "zipformer":
        _check_zipformer(encoder, where)


def _check_zipformer(encoder: EncoderConfig, where: str) -> None:
    sizes = vars(encoder.zipformer)
    for name, values in sizes.items():
        key = f"student.encoder.zipformer.{name}"
        stacks = values if isinstance(values, list) else [values]
        if isinstance(values, list) and len(values) != encoder.layers:
            raise UserError(
                f"{key} has {len(values)} numbers, student.encoder.layers is {encoder.layers}",
                where=where,
                remedy="Give one for each stack, and set student.encoder.layers to their number",
            )
        step = {"dims": 4, "feedforward": 4, "table_dim": 2}.get(name, 1)
        least = 0 if name == "straight_steps" else 1
        if not stacks or min(stacks) < least or any(each % step for each in stacks):
            remedy = f"Choose from {least} on" if step == 1 else f"Choose multiples of {step}"
            raise UserError(f"{key} is {values}", where=where, remedy=remedy)
    if any(kernel % 2 == 0 for kernel in encoder.zipformer.kernels):
        kernels = encoder.zipformer.kernels
        raise UserError(
            f"student.encoder.zipformer.kernels is {kernels}", where=where, remedy="Choose odd numbers"
        )
    if encoder.dim != max(encoder.zipformer.dims):
        raise UserError(
            f"student.encoder.dim is {encoder.dim}, the widest stack of student.encoder.zipformer.dims has "
            f"{max(encoder.zipformer.dims)}",
            where=where,
            remedy=f"Set student.encoder.dim: {max(encoder.zipformer.dims)}",
        )
