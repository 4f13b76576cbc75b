"""What every teacher is: something that reads texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """One text as a teacher sees it. Readings are shared (cache, equal texts): never change one in place.

    Attributes:
        vectors: `(n + 2, D)`: [CLS], the n pieces, [SEP]. A model's are float32 on its device, a store's float16
            and mapped from the disk; a signal makes float32 of them where it lays them together.
        spans: half-open character span of each of the n pieces in `text`, in order. What the teacher cut off
            by its maximum length or dropped is in no span.
        text: as it was given, before the teacher's own case and normalising.

    Raises:
        ValueError: the number of vectors is not the number of spans and two.
    """

    vectors: Tensor
    spans: list[tuple[int, int]]
    text: str

    def __post_init__(self) -> None:
        shape, needed = self.vectors.shape, len(self.spans) + 2
        if len(shape) != 2 or shape[0] != needed:
            raise ValueError(f"{len(self.spans)} pieces need {needed} vectors, got shape {tuple(shape)}")


class Teacher(Protocol):
    """Anything that reads texts: a model, a cache before it, a store on disk."""

    @property
    def dim(self) -> int:
        """Of the vectors."""
        ...

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """One reading for every text, in order; equal texts may share one."""
        ...
