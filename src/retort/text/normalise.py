"""Text normalisation: Unicode form, case, punctuation, white space.

The same normaliser is applied to training text, references and hypotheses, so that they are comparable.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, cast

from retort.config.ranges import check_ranges
from retort.config.schema import NormaliserConfig
from retort.text.homophones import fold

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

APOSTROPHES = "’‘‛ʼʻ′＇`´"
HYPHENS = "‐‑"
UNKNOWN_TEXT = "⁇"
"""Symbol for an unknown piece in decoded text."""
_TYPOGRAPHIC = str.maketrans({**dict.fromkeys(APOSTROPHES, "'"), **dict.fromkeys(HYPHENS, "-")})
# Zero-width (non-)joiners are part of the spelling of Persian and of the languages of India: after a letter or mark of
# a script whose letters join, before such a letter or, behind the sign that takes a vowel away, at the end of a word.
_JOINERS = "\u200c\u200d"
_LONE_JOINERS = re.compile(f"[{_JOINERS}]+")
_LONE_MARKS = re.compile(r"(?:(?<=\s)|^)[^\w\s]+")
# Symbols shown as pictures that compatibility forms would turn into letters, such as the information sign.
_PICTURES = re.compile("[^\\w\\s#*]\ufe0f|\u2139\ufe0f|[\U0001f200-\U0001f2ff]")
_VIRAMA = 9
"""Canonical combining class of that sign."""
# Marks that enclose or overlay symbols (of a keycap U+20E3), and invisible letters and marks: fillers of Hangul,
# inherent vowels of Khmer, the joiner of graphemes, variation selectors (of an emoji U+FE0F).
_SYMBOL_MARKS = range(0x20D0, 0x2100)
_UNSEEN = frozenset(
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
)
# Blocks whose letters never join: up to Hebrew; Georgian and Hangul; extended Latin and Greek; Hangul syllables.
_UNJOINED: tuple[tuple[int, int], ...] = ((0, 0x05FF), (0x10A0, 0x11FF), (0x1E00, 0x1FFF), (0xA960, 0xA97F))
_UNJOINED += ((0xAC00, 0xD7FF),)
# Not between two letters or digits; a combining mark is part of its letter, and \w lacks most marks.
_EDGE_APOSTROPHE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")
# Upper-casing may decompose and composing may lengthen; no known text needs more than three rounds.
_ROUNDS = 8
# Blocks without spaces, whose characters are words: Han and its variants, kana, Bopomofo.
_CJK: tuple[tuple[int, int], ...] = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x312F), (0x31A0, 0x31BF))
_CJK += ((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class Normaliser:
    """Normalises text; it is idempotent.

    In order: typographic apostrophes and hyphens become `'` and `-`; the Unicode form; the case; invisible
    characters (controls, surrogates, zero-width spaces, soft hyphens, byte-order marks, variation selectors) go;
    punctuation (categories P and S) that is not in `kept` becomes a space, so that "well-known" is two words, and what
    belonged to a symbol goes with it: marks without a letter, and joiners but between letters of scripts that have them;
    runs of white space become one space and the ends are stripped; with `spaces: drop` all white space goes,
    with `split` CJK characters are words; with `homophones: fold` Chinese characters that sound alike are one.

    When `'` is kept while the rest is dropped, it stays only between two letters or digits ("don't"):
    elsewhere it cannot be distinguished from a quotation mark. So "'hello'" is "hello", "boys'" is "boys" and "'tis"
    is "tis"; in text that is clean already, `punctuation: keep` leaves them.

    Args:
        config: see :class:`retort.config.schema.NormaliserConfig`.

    Raises:
        UserError: a value of the config is not among its choices.
    """

    def __init__(self, config: NormaliserConfig) -> None:
        check_ranges(config, above="normaliser")
        self.config = config
        self._drops = config.punctuation == "drop"
        kept = config.kept.translate(_TYPOGRAPHIC)
        self._edges = self._drops and "'" in kept
        self._characters = _CharacterTable(kept if self._drops else None)

    def __call__(self, text: str) -> str:
        for _ in range(_ROUNDS):
            before, text = text, self._once(text)
            if text == before:
                break
        return text

    def _once(self, text: str) -> str:
        text = text.translate(_TYPOGRAPHIC)
        if self._drops and not text.isascii():
            text = _PICTURES.sub(" ", text)
            # Compatibility forms would turn "¨" into a space and a combining mark without a letter.
            text = "".join(" " if unicodedata.category(each) == "Sk" else each for each in text)
        if self.config.form != "none":
            text = unicodedata.normalize(cast(Form, self.config.form), text)
        if self.config.case != "keep":
            text = text.upper() if self.config.case == "upper" else text.lower()
        text = text.translate(self._characters)
        if self._drops and not text.isascii():
            text = _drop_lone(text)
        if self._edges and "'" in text:
            text = _drop_edge_apostrophes(text)
        if self.config.homophones == "fold":
            text = fold(text)
        if self.config.spaces == "split":
            return " ".join(split_words(text))
        return ("" if self.config.spaces == "drop" else " ").join(text.split())

    def words(self, text: str) -> list[str]:
        """Words of the normalised text: separated by spaces, and every CJK character, independent of `spaces`."""
        return split_words(self(text))


class _CharacterTable(dict[int, str]):
    """Maps code points to their replacements, filled on demand; `kept` None keeps everything."""

    def __init__(self, kept: str | None) -> None:
        super().__init__()
        self._kept = kept

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        result = character
        if character.isspace():
            result = " "
        elif (
            category in ("Cc", "Cs")
            or (category == "Cf" and character not in _JOINERS)
            or code in _UNSEEN
            or (self._kept is not None and code in _SYMBOL_MARKS and character not in self._kept)
        ):
            result = ""
        elif self._kept is not None and category[0] in "PS" and character not in self._kept:
            result = " "
        self[code] = result
        return result


def _drop_lone(text: str) -> str:
    """Remove joiners that join nothing and marks without a letter or symbol."""

    def joiner(found: re.Match[str]) -> str:
        before, behind = text[: found.start()][-1:], text[found.end() :][:1]
        joins = _joining(before) and (_joining(behind) or unicodedata.combining(before) == _VIRAMA)
        return found[0][0] if joins else ""

    def mark(found: re.Match[str]) -> str:
        return "".join(each for each in found[0] if unicodedata.category(each)[0] != "M")

    if any(each in text for each in _JOINERS):
        text = _LONE_JOINERS.sub(joiner, text)
    return _LONE_MARKS.sub(mark, text)


def _joining(character: str) -> bool:
    """Whether it is a letter or mark of a script that uses joiners."""
    if not character or unicodedata.category(character)[0] not in "LM" or is_cjk(character):
        return False
    return not any(first <= ord(character) <= last for first, last in _UNJOINED)


def _drop_edge_apostrophes(text: str) -> str:
    # The pattern looks one character to each side; letters stand in for combining marks so that "é'a" in NFD,
    # where a mark comes before the apostrophe, is still seen as two letters. One for one, so positions hold.
    seen = text if text.isascii() else "".join("a" if unicodedata.category(c)[0] == "M" else c for c in text)
    edges = {match.start() for match in _EDGE_APOSTROPHE.finditer(seen)}
    return "".join(" " if index in edges else character for index, character in enumerate(text))


def recase(text: str, case: str) -> str:
    """`upper`, `lower` or `keep`, character by character, without changing positions ("ß" does not become "SS")."""
    if case == "keep":
        return text
    whole = text.upper() if case == "upper" else text.lower()
    if text.isascii():
        return whole
    each = (character.upper() if case == "upper" else character.lower() for character in text)
    return "".join(new if len(new) == 1 else old for old, new in zip(text, each))


def is_cjk(character: str) -> bool:
    """Whether a character is a word: Han, kana, Bopomofo."""
    return any(first <= ord(character) <= last for first, last in _CJK)


def split_words(text: str) -> list[str]:
    """Words separated by spaces; every CJK character is a word."""
    if not text.isascii():
        text = "".join(f" {character} " if is_cjk(character) else character for character in text)
    return text.split()


def character_class(character: str) -> str:
    """`cjk`, `letter`, `digit`, or the character itself: determines spaces next to it."""
    if is_cjk(character):
        return "cjk"
    category = unicodedata.category(character)[0]
    if category in "LM" or character == UNKNOWN_TEXT:
        return "letter"
    return "digit" if category == "N" else character
