"""The only place that maps `student.kind` to a search."""

from __future__ import annotations

from retort.decoding.attention_search import AttentionSearch
from retort.decoding.cif_search import CifSearch
from retort.decoding.ctc_search import CtcSearch
from retort.decoding.hybrid_search import HybridSearch, ScaledGraph
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.search import Search
from retort.decoding.transducer_search import TransducerSearch
from retort.errors import UserError
from retort.students.attention import AttentionStudent
from retort.students.cif import CifStudent
from retort.students.ctc import CtcStudent, HasCtc
from retort.students.hybrid import HybridStudent
from retort.students.student import Student
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import Tokenizer


def open_search(
    student: Student,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    before: Search | None = None,
    graph: ScaledGraph | None = None,
) -> Search:
    """The search of a student.

    Args:
        before: an earlier search of the same student, whose models are taken over where they are the same.
        graph: what a hybrid student is heard through.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student, or an option is not for its kind.
        ValueError: a hybrid student without a graph, or a kind that has no search.
    """
    _check(student, options)
    if isinstance(student, HybridStudent):
        if graph is None:
            raise ValueError("a hybrid student is heard through a decoding graph")
        return HybridSearch(student, graph, options)
    if isinstance(student, CtcStudent) or (options.mode == "ctc" and isinstance(student, HasCtc)):
        return CtcSearch(student, tokenizer, options, before)
    if isinstance(student, AttentionStudent):
        return AttentionSearch(student, tokenizer, options, before)
    if isinstance(student, TransducerStudent):
        return TransducerSearch(student, tokenizer, options, before)
    if not isinstance(student, CifStudent):
        raise ValueError(f"no search for {type(student).__name__}")
    return CifSearch(student, tokenizer, options, before)


def _check(student: Student, options: DecodingOptions) -> None:
    """
    Raises:
        UserError: an option that is not for this kind of student.
    """
    what = f"a {student.config.kind} student"
    attention, head = isinstance(student, AttentionStudent), isinstance(student, HasCtc)
    if options.mode == "ctc" and not head:
        raise UserError(f"mode is ctc, but {what} has no CTC head", remedy="Leave --mode out")
    if options.mode == "attention_rescoring" and not attention:
        raise UserError(
            f"mode is attention_rescoring, but {what} has no decoder with attention",
            remedy="Leave --mode out",
        )
    if options.ctc_weight != GREEDY.ctc_weight and not (attention and options.mode != "ctc"):
        raise UserError(
            f"ctc weight is {options.ctc_weight:g}, but {what} is not searched with a decoder and a CTC head"
            if not attention
            else f"ctc weight is {options.ctc_weight:g}, but mode ctc asks the CTC head alone",
            remedy="Leave --ctc-weight out",
        )
    own = isinstance(student, (CifStudent, TransducerStudent)) and options.mode != "ctc"
    if own and options.length_weight and not options.rescore:
        raise UserError(
            f"length weight is {options.length_weight:g}, but {what} says as many tokens as it hears",
            remedy="Leave --length-weight out, or rank anew with --rescore",
        )
