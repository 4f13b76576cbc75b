"""The only place that maps `student.kind` to a search."""

from __future__ import annotations

from retort.decoding.cif_search import CifSearch
from retort.decoding.options import DecodingOptions
from retort.decoding.search import Search
from retort.students.cif import CifStudent
from retort.text.tokenizers import Tokenizer


def open_search(
    student: CifStudent, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None = None
) -> Search:
    """The search of a student.

    Args:
        before: an earlier search of the same student, whose models are taken over where they are the same.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """
    return CifSearch(student, tokenizer, options, before if isinstance(before, CifSearch) else None)
