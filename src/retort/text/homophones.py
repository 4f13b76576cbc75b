"""Chinese characters that sound alike as one: four hundred syllables in place of thousands of characters.

A recogniser hears syllables; which of their characters is meant it learns from the language. Few examples are enough
for the first, and a vocabulary of characters can start from it (`training/start.py`).
"""

from __future__ import annotations

from functools import cache

from retort.common.errors import UserError

_FIRST, _LAST = 0x4E00, 0x9FFF


def fold(text: str) -> str:
    """Every Chinese character becomes the first in Unicode that is read alike, tones left aside.

    Of several readings of a character the commonest counts. What has none stays as it is.

    Raises:
        UserError: pypinyin is not installed.
    """
    if text.isascii():
        return text
    table = _table()
    return "".join(table.get(character, character) for character in text)


@cache
def _table() -> dict[str, str]:
    """By character of the basic block, the first that sounds alike."""
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError:
        raise UserError(
            "readings of Chinese characters need pypinyin", remedy="pip install 'retort-asr[mandarin]'"
        ) from None
    first: dict[str, str] = {}
    table = {}
    for character in map(chr, range(_FIRST, _LAST + 1)):
        for reading in lazy_pinyin(character, style=Style.NORMAL, errors="ignore"):
            table[character] = first.setdefault(reading, character)
    return table
