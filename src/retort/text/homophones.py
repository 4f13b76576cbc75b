"""Pronunciations of Chinese characters, and folding of homophones: four hundred syllables in place of thousands of
characters.

Acoustics determine syllables, the language determines their characters. Few examples are enough
for the former, and a model with a vocabulary of characters can be initialised from it (`training/init.py`).
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

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


def readings(text: str, *, tones: bool) -> list[str]:
    """The syllable of each character of a text in pinyin, chosen by the words around it; "" for other characters.

    Args:
        tones: whether the tone is a part of it, as a digit at the end; without a digit, the tone is neutral.

    Raises:
        UserError: pypinyin is not installed.
    """
    if text.isascii():
        return [""] * len(text)
    pypinyin = _pypinyin()
    style = pypinyin.Style.TONE3 if tones else pypinyin.Style.NORMAL
    found: list[str] = pypinyin.lazy_pinyin(text, style=style, errors=lambda others: [""] * len(others))
    return found


@cache
def _table() -> dict[str, str]:
    """For every character of the basic block, its first homophone."""
    pypinyin = _pypinyin()
    first: dict[str, str] = {}
    table = {}
    for character in map(chr, range(_FIRST, _LAST + 1)):
        for reading in pypinyin.lazy_pinyin(character, style=pypinyin.Style.NORMAL, errors="ignore"):
            table[character] = first.setdefault(reading, character)
    return table


def _pypinyin() -> ModuleType:
    try:
        import pypinyin
    except ImportError:
        raise UserError(
            "pronunciations of Chinese characters need pypinyin", remedy="pip install 'retort-asr[mandarin]'"
        ) from None
    module: ModuleType = pypinyin
    return module
