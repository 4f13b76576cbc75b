"""The search of a CTC head: its best path, or prefixes with a language model beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retort.decoding.alignment import with_times
from retort.decoding.beam import Candidate
from retort.decoding.greedy import Hypothesis, ctc_best_path, ctc_greedy
from retort.decoding.options import DecodingOptions
from retort.decoding.piece_search import PieceSearch, singly
from retort.decoding.prefix_beam import Prefix, prefix_beam
from retort.decoding.search import Search
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.text.tokenizers import Tokenizer


class CtcSearch(PieceSearch[Student]):
    """From hidden frames to n-best lists, by the CTC head alone.

    Args:
        student: in eval mode, with a CTC head, on the device where all of it computes.
        tokenizer: the student's.
        options: what to search with.
        before: a search of the same student, whose language model is taken over if it is the same.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
        ValueError: the student has no CTC head.
    """

    weighs_length = True

    def __init__(
        self, student: Student, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None = None
    ) -> None:
        super().__init__(student, tokenizer, options, before)
        if not isinstance(student, HasCtc):
            raise ValueError(f"{type(student).__name__} has no CTC head")
        self.head: HasCtc = student

    @torch.inference_mode()
    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model the best path for beam 1."""
        if self.greedy:
            return singly(ctc_best_path(self.head, encoded))
        log_probs = ctc_log_probs(self.head, encoded)
        options = self.options
        prefixes = prefix_beam(log_probs, encoded.lengths, options.beam, self.scorer, options.length_weight)
        return self.ranked(with_times(untimed(prefixes), log_probs, encoded.lengths, heard=True))

    def heard(self, encoded: Encoded) -> list[list[int]]:
        """Tokens of the best path."""
        return ctc_greedy(self.head, encoded)


def untimed(prefixes: Sequence[Sequence[Prefix]]) -> list[list[Candidate]]:
    """Prefixes as candidates that know neither times nor how sure each token is."""
    return [
        [Candidate(Hypothesis(each.ids, [0.0] * len(each.ids), []), each.score) for each in row]
        for row in prefixes
    ]
