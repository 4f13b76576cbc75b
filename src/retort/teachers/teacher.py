"""The interface of teachers and the output of a teacher for one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TeacherOutput:
    """Output of a teacher for one text. Outputs are shared (cache, equal texts) and must not be changed in place.

    Attributes:
        vectors: `(n + 2, D)`: [CLS], the n pieces, [SEP]. Those of a model are float32 on its device, those of a
            store float16 and memory-mapped; targets are always float32.
        spans: half-open character span of each of the n pieces in `text`, in order. Text that the teacher
            truncated or dropped is in no span.
        text: the input text, before the teacher's own case conversion and normalisation.
        ids: for soft labels `(n + 2, k)` int32: tokens of the student, distinct in each row; otherwise None.
            The pieces are then the student's, and `vectors (n + 2, k)` holds the probabilities of `ids` at
            temperature 1, not renormalised: the rest of the probability is outside the top k or outside the
            student's vocabulary. The last row belongs to EOS. The row of [CLS] is zero, as is that of a token without
            soft labels.

    Raises:
        ValueError: the number of vectors is not the number of spans plus two, or differs from that of the ids.
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
    """A model, a model with a cache, or a store on disk."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors; k for soft labels."""
        ...

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        """One output for each text, in order; equal texts may share one."""
        ...
