"""From what an encoder gave to n-best lists, whatever the student; each kind of student has a search of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from retort.common.errors import BadUtterance
from retort.decoding.cif import ScoredHypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.rescoring import RescoringLM
from retort.students.student import Encoded

NBest: TypeAlias = "list[ScoredHypothesis] | BadUtterance"
"""What is kept of an utterance, best first, at least one; or why nothing is."""


class Search(ABC):
    """A search as the options say, its language models opened.

    Args:
        options: what to search with.

    Attributes:
        parameters: numbers held at run time, by what holds them: `student`, `lm`, `rescore`.
        rescoring_lm: what ranks the lists anew, if anything does.
        weighs_length: whether the options' weight of length is in its scores already.
        workers: processes that search.
        notes: lines for the user, of what the search cannot do.
    """

    weighs_length: ClassVar[bool] = False

    def __init__(self, options: DecodingOptions) -> None:
        self.options = options
        self.parameters: dict[str, int] = {}
        self.rescoring_lm: RescoringLM | None = None
        self.workers = 1
        self.notes: list[str] = []

    @abstractmethod
    def __call__(self, encoded: Encoded) -> Sequence[NBest]:
        """All that the search keeps of each utterance of a batch."""

    def batches(self, encoded: Sequence[Encoded]) -> list[Sequence[NBest]]:
        """The same of several batches, side by side where the search can."""
        return [self(each) for each in encoded]

    def prepare(self, utterances: int) -> None:
        """Open now what so many utterances need."""
        return

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]] | None:
        """Tokens that the encoder's CTC head alone hears; None of a student that has none."""
        return None
