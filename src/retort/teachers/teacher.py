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
        ids: None, or, of a teacher of soft labels, `(n + 2, k)` int32: tokens of the student, each row's distinct.
            The pieces are then the student's own, and `vectors (n + 2, k)` holds the probabilities of `ids`, at
            temperature 1 and not renormalised: what they lack to 1 is outside the k, or outside the student's
            vocabulary. The last row is of EOS; [CLS] has zeros, and so has a token of which nothing is said.

    Raises:
        ValueError: the number of vectors is not the number of spans and two, or that of the ids another.
    """

    vectors: Tensor
    spans: list[tuple[int, int]]
    text: str
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        shape, needed = self.vectors.shape, len(self.spans) + 2
        if len(shape) != 2 or shape[0] != needed:
            raise ValueError(f"{len(self.spans)} pieces need {needed} vectors, got shape {tuple(shape)}")
        if self.ids is not None and self.ids.shape != shape:
            raise ValueError(f"probabilities of shape {tuple(shape)}, ids of {tuple(self.ids.shape)}")


class Teacher(Protocol):
    """Anything that reads texts: a model, a cache before it, a store on disk."""

    @property
    def dim(self) -> int:
        """Of the vectors; k, of soft labels."""
        ...

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """One reading for every text, in order; equal texts may share one."""
        ...
