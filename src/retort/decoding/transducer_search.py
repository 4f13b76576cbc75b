"""The search of a transducer: greedy or with a beam, language models beside it."""

from __future__ import annotations

from retort.decoding.beam import Candidate
from retort.decoding.fusion import Fusion
from retort.decoding.greedy import ctc_greedy
from retort.decoding.options import DecodingOptions
from retort.decoding.piece_search import PieceSearch
from retort.decoding.rescoring import rescore
from retort.decoding.search import Search
from retort.decoding.transducer_beam import beam_transduced
from retort.decoding.transducer_greedy import greedy_transduced
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import Tokenizer


class TransducerSearch(PieceSearch):
    """From hidden frames to n-best lists; the arguments are those of :class:`PieceSearch`."""

    def __init__(
        self,
        student: TransducerStudent,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        before: Search | None = None,
    ) -> None:
        super().__init__(student, tokenizer, options, before)
        self.student = student
        self.scorer = None if self.lm is None else Fusion(self.lm, options.lm_weight)

    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model greedy for beam 1."""
        options = self.options
        if options.beam == 1 and self.scorer is None:
            symbols = self.student.config.transducer.symbols
            return [[each] for each in greedy_transduced(self.student, encoded, symbols)]
        found = beam_transduced(self.student, encoded, options.beam, self.scorer)
        if self.judge is None:
            return found
        return rescore(found, self.judge, options.rescore_weight, options.length_weight)

    def heard(self, encoded: Encoded) -> list[list[int]] | None:
        """Tokens that the CTC head hears, by its best path; None without one."""
        return ctc_greedy(self.student, encoded) if self.student.config.ctc_weight > 0.0 else None
