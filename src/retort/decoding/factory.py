"""Creation of the search for a student; the only place that maps `student.kind` and the options to a search."""

from __future__ import annotations

from typing import Any

from retort.common.errors import UserError
from retort.decoding.graph_search import CtcGraphSearch, HybridSearch, ScaledGraph
from retort.decoding.hotwords import open_hotwords
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.search import Search
from retort.decoding.token_search import AttentionSearch, CifSearch, CtcSearch, TokenSearch, TransducerSearch
from retort.decoding.whisper_search import WhisperSearch
from retort.graph.pool import DecoderPool
from retort.nn.decoder import CifDecoder
from retort.nn.factored import FactoredDecoder
from retort.students.attention import AttentionStudent
from retort.students.cif import CifStudent
from retort.students.ctc import CtcStudent, HasCtc
from retort.students.hybrid import HybridStudent
from retort.students.student import Student
from retort.students.transducer import TransducerStudent
from retort.students.whisper import WhisperStudent
from retort.text.normalise import Normaliser
from retort.text.tokenizers import Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer


def open_search(
    student: Student,
    tokenizer: Tokenizer,
    normalise: Normaliser,
    options: DecodingOptions,
    before: Search | None = None,
    graph: ScaledGraph | None = None,
    pool: DecoderPool | None = None,
) -> Search:
    """Create the search of a student.

    Args:
        normalise: the student's text normaliser.
        before: an earlier search of the same student; its language models are reused if they are the same.
        graph: decoding graph of a hybrid student.
        pool: processes for graph searches; by default this process, without stored graphs.

    Raises:
        UserError: a language model or a list of hotwords cannot be opened, or an option or a model does not fit the student.
        ValueError: a hybrid student is given without a graph, or there is no search for the student's kind.
    """
    _check(student, options)
    place = pool or DecoderPool()
    if isinstance(student, HybridStudent):
        if graph is None:
            raise ValueError("a hybrid student needs a decoding graph")
        return HybridSearch(student, graph, options, place)
    if options.graph:
        earlier = before if isinstance(before, CtcGraphSearch) else None
        return CtcGraphSearch(student, tokenizer, normalise, options, place, earlier)
    if options.acoustic_scale:
        raise UserError(
            f"acoustic scale is {options.acoustic_scale:g}, but there is no decoding graph",
            remedy="Give a language model with --graph",
        )
    found = _token_search(student, tokenizer, options, before)
    if options.hotwords:
        hotwords, notes = open_hotwords(options, tokenizer, normalise)
        found.use_hotwords(hotwords)
        found.notes += notes
    return found


def _token_search(
    student: Student, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None
) -> TokenSearch[Any]:
    """
    Raises:
        ValueError: there is no search for the student's kind.
    """
    if isinstance(student, CtcStudent) or (options.mode == "ctc" and isinstance(student, HasCtc)):
        return CtcSearch(student, tokenizer, options, before)
    if isinstance(student, AttentionStudent):
        return AttentionSearch(student, tokenizer, options, before)
    if isinstance(student, TransducerStudent):
        return TransducerSearch(student, tokenizer, options, before)
    if isinstance(student, WhisperStudent):
        if not isinstance(tokenizer, WhisperTokenizer):
            raise ValueError("a Whisper student needs Whisper's tokenizer")
        return WhisperSearch(student, tokenizer, options, before)
    if not isinstance(student, CifStudent):
        raise ValueError(f"no search for {type(student).__name__}")
    if options.language_scale:
        student = student.with_language_scale(options.language_scale)
    return CifSearch(student, tokenizer, options, before)


def _check(student: Student, options: DecodingOptions) -> None:
    """
    Raises:
        UserError: an option does not apply to this kind of student.
    """
    kind = student.config.kind
    options.check_student(kind)
    what = f"{'an' if kind == 'attention' else 'a'} {kind} student"
    attention, head = isinstance(student, AttentionStudent), isinstance(student, HasCtc)
    if options.mode in ("ctc", "ctc_rescoring", "joint") and not head:
        raise UserError(f"mode is {options.mode}, but {what} has no CTC head", remedy="Leave --mode out")
    if options.mode == "ctc_rescoring" and (attention or isinstance(student, CtcStudent)):
        raise UserError(
            f"mode is ctc_rescoring, but the search of {what} uses its CTC head already",
            remedy="Leave --mode out",
        )
    cif = isinstance(student, CifStudent)
    if options.mode == "joint" and not cif:
        raise UserError(
            f"mode is joint, but {what} is not a CIF student",
            remedy="Leave --mode out: an attention student's own search is joint already",
        )
    peaks = isinstance(student, CifStudent) and student.config.cif.fires == "ctc"
    own_fires = peaks and isinstance(student.decoder, CifDecoder)
    if options.language_scale and not (cif and isinstance(student.decoder, FactoredDecoder)):
        raise UserError(
            f"language scale is {options.language_scale:g}, but the decoder of {what} has no language part",
            remedy="Leave --language-scale out",
        )
    if options.mode == "attention_rescoring" and not (attention or own_fires):
        raise UserError(
            f"mode is attention_rescoring, but {what} has no decoder that can score the CTC head's hypotheses",
            remedy="Leave --mode out",
        )
    both = options.mode in ("ctc_rescoring", "joint", "attention_rescoring") or (
        attention and options.mode != "ctc"
    )
    if options.ctc_weight != GREEDY.ctc_weight and not both:
        raise UserError(
            f"ctc weight is {options.ctc_weight:g}, but the search of {what} does not combine a decoder with a CTC head"
            if not attention
            else f"ctc weight is {options.ctc_weight:g}, but mode ctc uses the CTC head alone",
            remedy="Leave --ctc-weight out",
        )
    if options.length_weight and not options.rescore and options.mode != "ctc":
        weight, remedy = f"length weight is {options.length_weight:g}", "Leave --length-weight out"
        if isinstance(student, CifStudent):
            raise UserError(
                f"{weight}, but the number of tokens of {what} is the number of its fires",
                remedy=f"{remedy}, or rescore with --rescore",
            )
