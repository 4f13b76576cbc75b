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
        vectors: `(n + 2, D)` float32, on the teacher's device: [CLS], the n pieces, [SEP].
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
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.spans) + 2:
            shape = tuple(self.vectors.shape)
            raise ValueError(
                f"{len(self.spans)} pieces need {len(self.spans) + 2} vectors, got shape {shape}"
            )


class Teacher(Protocol):
    """Anything that reads texts: a model, a cache before it, a store on disk."""

    @property
    def dim(self) -> int:
        """Of the vectors."""
        ...

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """One reading for every text, in order; equal texts may share one."""
        ...
