"""What a verb answered, and what a user's mistake looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    code: int
    out: str
    error: str


Retort = Callable[..., Answer]


def is_one_line(answer: Answer, *words: str) -> None:
    """A user's mistake: exit code 2, one line on stderr that names it, no traceback."""
    assert answer.code == 2, answer
    assert answer.error.startswith("retort: ")
    assert answer.error.endswith("\n")
    assert answer.error.count("\n") == 1, answer.error
    for word in words:
        assert word in answer.error, answer.error
