"""The search of a CIF student: greedy or with a beam, language models beside it."""

from __future__ import annotations

from retort.decoding.beam import Candidate, beam_fired
from retort.decoding.greedy import ctc_greedy, greedy_fired
from retort.decoding.options import DecodingOptions
from retort.decoding.piece_search import PieceSearch, singly
from retort.decoding.search import Search
from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent
from retort.students.student import Encoded
from retort.text.tokenizers import Tokenizer


class CifSearch(PieceSearch):
    """From fired embeddings to n-best lists.

    Args:
        student: in eval mode, on the device where all of it computes.
        tokenizer: the student's.
        options: what to search with.
        before: a search of the same student, whose language model is taken over if it is the same.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """

    def __init__(
        self,
        student: CifStudent,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        before: Search | None = None,
    ) -> None:
        super().__init__(student, tokenizer, options, before)
        self.student = student

    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model greedy for beam 1."""
        return self.fired(self.student.fire(encoded), encoded)

    def fired(self, fired: FiredTokens, encoded: Encoded | None = None) -> list[list[Candidate]]:
        """The same of embeddings that were fired already."""
        if self.greedy:
            return singly(greedy_fired(self.student, fired, encoded))
        return self.ranked(beam_fired(self.student, fired, self.options.beam, self.scorer, encoded))

    def heard(self, encoded: Encoded) -> list[list[int]]:
        """Tokens that the CTC head hears, by its best path."""
        return ctc_greedy(self.student, encoded)
