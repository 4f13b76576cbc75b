"""The only place that maps `student.kind` to a search."""

from __future__ import annotations

from retort.decoding.cif_search import CifSearch
from retort.decoding.hybrid_search import HybridSearch, ScaledGraph
from retort.decoding.options import DecodingOptions
from retort.decoding.search import Search
from retort.students.cif import CifStudent
from retort.students.hybrid import HybridStudent
from retort.students.student import Student
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
        UserError: a language model cannot be opened, or does not fit the student.
        ValueError: a hybrid student without a graph, or a kind that has no search.
    """
    if isinstance(student, HybridStudent):
        if graph is None:
            raise ValueError("a hybrid student is heard through a decoding graph")
        return HybridSearch(student, graph, options)
    if not isinstance(student, CifStudent):
        raise ValueError(f"no search for {type(student).__name__}")
    return CifSearch(student, tokenizer, options, before if isinstance(before, CifSearch) else None)
