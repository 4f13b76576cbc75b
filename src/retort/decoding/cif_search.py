"""The search of a CIF student: greedy or with a beam, language models beside it."""

from __future__ import annotations

from retort.decoding.beam import Candidate, beam_fired
from retort.decoding.fusion import Fusion
from retort.decoding.greedy import ctc_greedy, greedy_fired
from retort.decoding.options import DecodingOptions
from retort.decoding.piece_search import PieceSearch
from retort.decoding.rescoring import rescore
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
        self.scorer = None if self.lm is None else Fusion(self.lm, options.lm_weight)

    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model greedy for beam 1."""
        return self.fired(self.student.fire(encoded), encoded)

    def fired(self, fired: FiredTokens, encoded: Encoded | None = None) -> list[list[Candidate]]:
        """The same of embeddings that were fired already."""
        if self.options.beam == 1 and self.scorer is None:
            greedy = greedy_fired(self.student, fired, encoded)
            return [[Candidate(each, sum(each.log_probs))] for each in greedy]
        found = beam_fired(self.student, fired, self.options.beam, self.scorer, encoded)
        if self.judge is None:
            return found
        return rescore(found, self.judge, self.options.rescore_weight, self.options.length_weight)

    def heard(self, encoded: Encoded) -> list[list[int]]:
        """Tokens that the CTC head hears, by its best path."""
        return ctc_greedy(self.student, encoded)
