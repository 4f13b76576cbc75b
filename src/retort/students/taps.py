"""What a student shows of itself while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Unit = Literal["token", "frame", "utterance"]


@dataclass(frozen=True)
class Tap:
    """A named tensor of a student that rows of distillation may read.

    Attributes:
        values: `(B, N, D)`, floating point; N counts tokens (EOS included), frames, or is 1 for an utterance.
        lengths: `(B,)` int64, how many of the N positions are valid.
        unit: what one position stands for.
        hard: of an output with hard labels, `(B, N)` float32: what each position adds to the student's weighted loss;
            0 where it has no label.
        present: None, or `(B, N)` bool: the positions at which the student has anything to be compared. A student of
            which EOS is no label has no EOS there, yet counts it in `lengths` as teachers do.
    """

    values: Tensor
    lengths: Tensor
    unit: Unit
    hard: Tensor | None = None
    present: Tensor | None = None
