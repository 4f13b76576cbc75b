"""Logged values that are summed over batches and processes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tally(NamedTuple):
    """A logged value `sum / count`: a scalar `sum` without gradient, and its `count`; both are added over batches."""

    sum: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used here
