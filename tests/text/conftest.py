"""A tiny teacher's tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_teachers import HAN, WORDS, fast, word_piece


@pytest.fixture(scope="module")
def teacher() -> Any:
    return fast(word_piece(WORDS + HAN))
