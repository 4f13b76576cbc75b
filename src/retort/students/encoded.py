"""What every student's encoder gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Encoder output: `hidden (B, T, D)` float32, zero behind `lengths (B,)`."""

    hidden: Tensor
    lengths: Tensor
