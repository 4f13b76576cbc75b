"""What searches over the student's pieces share: the language models beside them."""

from __future__ import annotations

from retort.decoding.fusion import open_fitting_lm
from retort.decoding.options import DecodingOptions
from retort.decoding.rescoring import open_judge
from retort.decoding.search import Search
from retort.lm.causal import CausalLM
from retort.students.student import Student
from retort.text.tokenizers import Tokenizer


class PieceSearch(Search):
    """A search whose hypotheses are pieces of the student's, as its language models know them.

    Args:
        student: in eval mode, on the device where all of it computes.
        tokenizer: the student's.
        options: what to search with.
        before: a search of the same student, whose language model is taken over if it is the same.

    Attributes:
        lm: that which joins the search, if any does.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """

    def __init__(
        self, student: Student, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None = None
    ) -> None:
        super().__init__(options)
        self.parameters["student"] = sum(each.numel() for each in student.parameters())
        device = next(student.parameters()).device
        self.lm: CausalLM | None = None
        if options.lm:
            known = before.lm if isinstance(before, PieceSearch) else None
            same = before is not None and before.options.lm == options.lm
            self.lm = known if same and known else open_fitting_lm(options.lm, tokenizer, device)
            self.parameters["lm"] = self.lm.parameters
        if options.rescore:
            self.judge = open_judge(options, tokenizer, device)
            self.parameters["rescore"] = self.judge.parameters
