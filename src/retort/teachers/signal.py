"""What a teacher says about the positions of a student."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Signal:
    """Teacher vectors laid beside a student's positions.

    Attributes:
        vectors: `(B, N, D)` float32; zero where `valid` is false.
        valid: `(B, N)` bool; false where the teacher has nothing to say (a lone space, text it cut off, padding).
        sources: `(B, N, 2)` int64; half-open interval of the teacher's positions that the vector was averaged
            from, numbered over the distinct texts of the batch, so that two positions whose intervals overlap
            share a teacher piece. (0, 0) where not valid.
    """

    vectors: Tensor
    valid: Tensor
    sources: Tensor
