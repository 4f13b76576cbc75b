"""Folding of Chinese homophones: four hundred syllables in place of thousands of characters.

Acoustics determine syllables, the language determines their characters. Few examples are enough
for the former, and a model with a vocabulary of characters can be initialised from it (`training/init.py`).
"""

from __future__ import annotations

from functools import cache

from retort.common.errors import UserError

_FIRST, _LAST = 0x4E00, 0x9FFF


def fold(text: str) -> str:
    """Replace every Chinese character by the first one in Unicode with the same syllable, ignoring tones.

    The most frequent pronunciation of a character is used. Characters without one are not changed.

    Raises:
        UserError: pypinyin is not installed.
    """
    if text.isascii():
        return text
    table = _table()
    return "".join(table.get(character, character) for character in text)


@cache
def _table() -> dict[str, str]:
    """For every character of the basic block, its first homophone."""
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError:
        raise UserError(
            "pronunciations of Chinese characters need pypinyin", remedy="pip install 'retort-asr[mandarin]'"
        ) from None
    first: dict[str, str] = {}
    table = {}
    for character in map(chr, range(_FIRST, _LAST + 1)):
        for reading in lazy_pinyin(character, style=Style.NORMAL, errors="ignore"):
            table[character] = first.setdefault(reading, character)
    return table
