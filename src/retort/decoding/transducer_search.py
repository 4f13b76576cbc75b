"""The search of a transducer: greedy or with a beam, language models beside it."""

from __future__ import annotations

from retort.decoding.beam import Candidate
from retort.decoding.greedy import ctc_greedy
from retort.decoding.piece_search import PieceSearch
from retort.decoding.transducer_beam import beam_transduced
from retort.decoding.transducer_greedy import greedy_transduced
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent


class TransducerSearch(PieceSearch[TransducerStudent]):
    """From hidden frames to n-best lists; the arguments are those of :class:`PieceSearch`."""

    weighs_length = True

    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model or a weight of length greedy for beam 1."""
        if self.greedy:
            symbols = self.student.config.transducer.symbols
            return [[each] for each in greedy_transduced(self.student, encoded, symbols)]
        options = self.options
        found = beam_transduced(self.student, encoded, options.beam, self.scorer, options.length_weight)
        return self.ranked(found, encoded)

    def heard(self, encoded: Encoded) -> list[list[int]] | None:
        """Tokens that the CTC head hears, by its best path; None without one."""
        return ctc_greedy(self.student, encoded) if self.student.config.ctc_weight > 0.0 else None
