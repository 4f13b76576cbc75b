"""Maps the symbols of a teacher to the outputs of a student by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FrameClasses:
    """The classes of a row over frames.

    Attributes:
        size: number of outputs that the row compares with the teacher.
        lookup: `(V,)` int64, output of each symbol of the teacher, -1 for none; None if the row has its own head,
            whose outputs are the symbols.
    """

    size: int
    lookup: Tensor | None = None


def frame_classes(
    tap: str, teacher: str, outputs: Mapping[str, Sequence[str]], symbols: Mapping[str, Sequence[str]]
) -> FrameClasses | None:
    """Classes of a row with soft or hard labels of `teacher` on frames of `tap`; None if its symbols are unknown.

    Args:
        outputs: names of the student's outputs, by tap.
        symbols: symbols of the teachers, by name.
    """
    if teacher not in symbols:
        return None
    if tap not in outputs:
        return FrameClasses(len(symbols[teacher]))
    places = {name: place for place, name in enumerate(outputs[tap])}
    # On the CPU independent of the default device: `describe` builds rows on the meta device.
    lookup = [places.get(symbol, -1) for symbol in symbols[teacher]]
    return FrameClasses(len(places), torch.tensor(lookup, dtype=torch.int64, device="cpu"))


def translated(lookup: Tensor, ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Convert soft labels over a teacher's symbols to soft labels over a student's outputs.

    Args:
        lookup: `(V,)`, see :class:`FrameClasses`.
        ids: `(..., k)` int64 symbols.
        probs: `(..., k)` probabilities of the symbols.

    Returns:
        Outputs and probabilities `(..., k)`; a symbol without output becomes output 0 with probability 0.
    """
    found = lookup[ids]
    missing = found < 0
    return found.masked_fill(missing, 0), probs.masked_fill(missing, 0.0)
