"""Which outputs of a student the symbols of a teacher are, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FrameClasses:
    """What a row over frames needs to know of a teacher's symbols.

    Attributes:
        size: number of outputs that the row compares with the teacher.
        lookup: `(V,)` int64, the output that each symbol of the teacher is, -1 for none; None where the outputs are
            the symbols themselves, on a head of the row's own.
    """

    size: int
    lookup: Tensor | None = None


def frame_classes(
    tap: str, teacher: str, outputs: Mapping[str, Sequence[str]], symbols: Mapping[str, Sequence[str]]
) -> FrameClasses | None:
    """Of a row that lays soft or hard labels of `teacher` on frames of `tap`; None if its symbols are unknown.

    Args:
        outputs: by tap, names of the student's own outputs.
        symbols: by teacher.
    """
    if teacher not in symbols:
        return None
    if tap not in outputs:
        return FrameClasses(len(symbols[teacher]))
    places = {name: place for place, name in enumerate(outputs[tap])}
    # On the CPU whatever the default device: `describe` builds rows without memory.
    lookup = [places.get(symbol, -1) for symbol in symbols[teacher]]
    return FrameClasses(len(places), torch.tensor(lookup, dtype=torch.int64, device="cpu"))


def translated(lookup: Tensor, ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Soft labels of a teacher's symbols as those of a student's outputs.

    Args:
        lookup: `(V,)`, see :class:`FrameClasses`.
        ids: `(..., k)` int64 symbols.
        probs: `(..., k)` of the same.

    Returns:
        Outputs and probabilities `(..., k)`; what is no output has output 0 and probability 0.
    """
    found = lookup[ids]
    missing = found < 0
    return found.masked_fill(missing, 0), probs.masked_fill(missing, 0.0)
