"""What searches over the student's pieces share: the language models beside them, and lists of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from retort.decoding.beam import Candidate
from retort.decoding.ctc_rescoring import ctc_rescored
from retort.decoding.fusion import Fusion, open_fitting_lm
from retort.decoding.greedy import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.rescoring import open_judge, rescore
from retort.decoding.search import Search
from retort.lm.causal import CausalLM
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.text.tokenizers import Tokenizer

S = TypeVar("S", bound=Student)


class PieceSearch(Search, Generic[S]):
    """A search whose hypotheses are pieces of the student's, as its language models know them.

    Args:
        student: in eval mode, on the device where all of it computes.
        tokenizer: the student's.
        options: what to search with.
        before: a search of the same student, whose language model is taken over if it is the same.

    Attributes:
        lm: that which joins the search, if any does.
        scorer: the same with its weight, for searches that ask for every token.
        greedy: whether one hypothesis is kept and neither a language model nor its length has a say in it.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """

    def __init__(
        self, student: S, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None = None
    ) -> None:
        super().__init__(options)
        self.student = student
        self.parameters["student"] = sum(each.numel() for each in student.parameters())
        device = next(student.parameters()).device
        self.lm: CausalLM | None = None
        if options.lm:
            known = before.lm if isinstance(before, PieceSearch) else None
            same = before is not None and before.options.lm == options.lm
            self.lm = known if same and known else open_fitting_lm(options.lm, tokenizer, device)
            self.parameters["lm"] = self.lm.parameters
        self.scorer = None if self.lm is None else Fusion(self.lm, options.lm_weight)
        weighed = self.weighs_length and bool(options.length_weight)
        self.greedy = options.beam == 1 and self.lm is None and not weighed
        if options.rescore:
            self.judge = open_judge(options, tokenizer, device)
            self.parameters["rescore"] = self.judge.parameters

    def ranked(self, found: list[list[Candidate]], encoded: Encoded | None = None) -> list[list[Candidate]]:
        """What was found, in the order of what ranks it anew, if anything does: the CTC head, then a language model.

        Raises:
            ValueError: the CTC head is asked, but nothing was encoded or there is no such head.
        """
        if self.options.mode == "ctc_rescoring":
            if encoded is None or not isinstance(self.student, HasCtc):
                raise ValueError("a CTC head ranks anew by encoded frames")
            log_probs, config = ctc_log_probs(self.student, encoded), self.student.config
            weight = self.options.ctc_weight
            found = ctc_rescored(found, log_probs, encoded.lengths, weight, config.faithful)
        if self.judge is None:
            return found
        length_weight = 0.0 if self.weighs_length else self.options.length_weight
        return rescore(found, self.judge, self.options.rescore_weight, length_weight)


def singly(hypotheses: Sequence[Hypothesis]) -> list[list[Candidate]]:
    """Greedy hypotheses as lists of one."""
    return [[Candidate(each, sum(each.log_probs))] for each in hypotheses]
