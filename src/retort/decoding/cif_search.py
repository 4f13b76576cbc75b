"""The search of a CIF student: greedy or with a beam, language models beside it."""

from __future__ import annotations

from retort.decoding.beam import Candidate, beam_fired
from retort.decoding.greedy import ctc_greedy, greedy_fired
from retort.decoding.piece_search import PieceSearch, singly
from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent
from retort.students.student import Encoded


class CifSearch(PieceSearch[CifStudent]):
    """From fired embeddings to n-best lists; the arguments are those of :class:`PieceSearch`."""

    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model greedy for beam 1."""
        return self.fired(self.student.fire(encoded), encoded)

    def fired(self, fired: FiredTokens, encoded: Encoded | None = None) -> list[list[Candidate]]:
        """The same of embeddings that were fired already."""
        if self.greedy:
            return singly(greedy_fired(self.student, fired, encoded))
        return self.ranked(beam_fired(self.student, fired, self.options.beam, self.scorer, encoded), encoded)

    def heard(self, encoded: Encoded) -> list[list[int]]:
        """Tokens that the CTC head hears, by its best path."""
        return ctc_greedy(self.student, encoded)
