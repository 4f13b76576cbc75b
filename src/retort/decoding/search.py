"""The interface of searches, from encoder output to n-best lists; each kind of student has its own search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from retort.decoding.hypothesis import NBest
from retort.decoding.options import DecodingOptions
from retort.decoding.rescoring import RescoringLM
from retort.students.student import Encoded


class Search(ABC):
    """A search with given options; its language models are open.

    Args:
        options: decoding options.

    Attributes:
        parameters: number of parameters at run time of `student`, `lm` and `rescore`.
        rescoring_lm: the language model that rescores n-best lists, or None.
        weighs_length: whether the scores of the search include the length weight.
        workers: number of search processes.
        notes: messages for the user about limitations of the search.
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
        """The n-best list of each utterance of a batch."""

    def batches(self, encoded: Sequence[Encoded]) -> list[Sequence[NBest]]:
        """The n-best lists of several batches, searched in parallel where possible."""
        return [self(each) for each in encoded]

    def prepare(self, utterances: int) -> None:
        """Start processes and open models for this number of utterances."""
        return

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]] | None:
        """Token ids of the CTC head's best path for each utterance; None for a student without a CTC head."""
        return None
