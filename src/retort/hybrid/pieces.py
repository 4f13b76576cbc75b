"""Pieces of a transcript laid on the frames of its alignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retort.errors import BadUtterance
from retort.hybrid.alignment import Alignment

Span = tuple[int, int]


def piece_segments(alignment: Alignment, text: str, spans: Sequence[Span]) -> NDArray[np.int64]:
    """Which piece of its transcript each frame belongs to.

    The borders of words are the alignment's. Inside a word its frames are divided evenly among its characters, and
    each character's go to the piece that it stands in: pieces of a word get frames in proportion to their characters.
    A piece of a word with fewer frames than pieces may get none, and so does a piece that is a space alone.

    Args:
        text: the transcript; the alignment's words are in it one after the other, in whatever case.
        spans: half-open character spans of the pieces in `text`, in order. Of pieces that share a character the
            first has it.

    Returns:
        `(T,)`, -1 for frames that are in no word or of characters in no piece.

    Raises:
        BadUtterance: the alignment is of another transcript.
    """
    owners = np.full(len(text), -1, np.int64)
    for piece in range(len(spans) - 1, -1, -1):
        start, end = spans[piece]
        owners[start:end] = piece
    result = np.full(len(alignment.senones), -1, np.int64)
    letters = [place for place, character in enumerate(text) if not character.isspace()]
    before = 0
    for word in alignment.words:
        own = letters[before : before + len(word.symbol)]
        before += len(own)
        said = "".join(text[place] for place in own)
        if said.casefold() != word.symbol.casefold():
            raise _other_words(alignment)
        middles = (np.arange(word.frames) + 0.5) / word.frames
        places = np.array(own)[(middles * len(own)).astype(np.int64)]
        result[word.start : word.start + word.frames] = owners[places]
    if before != len(letters):
        raise _other_words(alignment)
    return result


def _other_words(alignment: Alignment) -> BadUtterance:
    words = " ".join(word.symbol for word in alignment.words)
    return BadUtterance(f"its alignment is of other words: {words}", where=alignment.id)
