"""One form for every transcript: Unicode form, case, punctuation, white space.

The same normaliser is applied to training text, references and hypotheses, so that they can be compared.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, cast

from retort.config import CHOICES, NormaliserConfig
from retort.errors import UserError
from retort.text.homophones import fold

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

APOSTROPHES = "’‘‛ʼʻ′＇`´"
HYPHENS = "‐‑"
UNKNOWN_TEXT = "⁇"
"""How decoded text shows an unknown piece."""
_TYPOGRAPHIC = str.maketrans({**dict.fromkeys(APOSTROPHES, "'"), **dict.fromkeys(HYPHENS, "-")})
# Zero-width (non-)joiners are part of the spelling of Persian and of the languages of India.
_JOINERS = "\u200c\u200d"
# Not between two letters or digits; a combining mark is part of its letter, and \w lacks most marks.
_EDGE_APOSTROPHE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")
# Upper-casing may decompose and composing may lengthen; no text found so far needs more than three rounds.
_ROUNDS = 8
# Blocks written without spaces, whose characters count as words: Han and its variants, kana, Bopomofo.
_CJK: tuple[tuple[int, int], ...] = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x312F), (0x31A0, 0x31BF))
_CJK += ((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


class Normaliser:
    """Text to its normal form; applying it twice changes nothing.

    In order: typographic apostrophes and hyphens become `'` and `-`; the Unicode form; the case; invisible
    characters (controls, surrogates, zero-width spaces, soft hyphens, byte-order marks) go, joiners stay;
    punctuation (categories P and S) that is not in `kept` becomes a space, so that "well-known" is two words;
    runs of white space become one space and the ends are stripped; with `spaces: drop` all white space goes,
    with `split` CJK characters are words; with `homophones: fold` Chinese characters that sound alike are one.

    When `'` is kept while the rest is dropped, it stays only between two letters or digits ("don't"):
    elsewhere it cannot be told from a quotation mark. So "'hello'" is "hello", "boys'" is "boys" and "'tis"
    is "tis"; in text that is clean already, `punctuation: keep` leaves them.

    Args:
        config: see :class:`retort.config.NormaliserConfig`.

    Raises:
        UserError: a value of the config is not among its choices.
    """

    def __init__(self, config: NormaliserConfig) -> None:
        for key in ("form", "case", "punctuation", "spaces", "homophones"):
            value, choices = getattr(config, key), CHOICES[f"normaliser.{key}"]
            if value not in choices:
                raise UserError(
                    f"normaliser.{key} is '{value}'", remedy=f"Choose one of {', '.join(choices)}"
                )
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
            # Compatibility forms would turn "¨" into a space and a combining mark without a letter.
            text = "".join(" " if unicodedata.category(each) == "Sk" else each for each in text)
        if self.config.form != "none":
            text = unicodedata.normalize(cast(Form, self.config.form), text)
        if self.config.case != "keep":
            text = text.upper() if self.config.case == "upper" else text.lower()
        text = text.translate(self._characters)
        if self._edges and "'" in text:
            text = _drop_edge_apostrophes(text)
        if self.config.homophones == "fold":
            text = fold(text)
        if self.config.spaces == "split":
            return " ".join(split_words(text))
        return ("" if self.config.spaces == "drop" else " ").join(text.split())

    def words(self, text: str) -> list[str]:
        """Of the normal form: what stands between spaces, and every CJK character, whatever `spaces` says."""
        return split_words(self(text))


class _CharacterTable(dict[int, str]):
    """Code point to what stands in its place, filled as characters are met; `kept` None keeps everything."""

    def __init__(self, kept: str | None) -> None:
        super().__init__()
        self._kept = kept

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        result = character
        if character.isspace():
            result = " "
        elif category in ("Cc", "Cs") or (category == "Cf" and character not in _JOINERS):
            result = ""
        elif self._kept is not None and category[0] in "PS" and character not in self._kept:
            result = " "
        self[code] = result
        return result


def _drop_edge_apostrophes(text: str) -> str:
    # The pattern looks one character to each side; letters stand in for combining marks so that "é'a" in NFD,
    # where a mark comes before the apostrophe, is still seen as two letters. One for one, so positions hold.
    seen = text if text.isascii() else "".join("a" if unicodedata.category(c)[0] == "M" else c for c in text)
    edges = {match.start() for match in _EDGE_APOSTROPHE.finditer(seen)}
    return "".join(" " if index in edges else character for index, character in enumerate(text))


def recase(text: str, case: str) -> str:
    """`upper`, `lower` or `keep`, character by character: positions hold, so "ß" does not become "SS"."""
    if case == "keep":
        return text
    whole = text.upper() if case == "upper" else text.lower()
    if text.isascii():
        return whole
    each = (character.upper() if case == "upper" else character.lower() for character in text)
    return "".join(new if len(new) == 1 else old for old, new in zip(text, each))


def is_cjk(character: str) -> bool:
    """Whether a character is a word by itself: Han, kana, Bopomofo."""
    return any(first <= ord(character) <= last for first, last in _CJK)


def split_words(text: str) -> list[str]:
    """What stands between spaces; every CJK character is a word by itself."""
    if not text.isascii():
        text = "".join(f" {character} " if is_cjk(character) else character for character in text)
    return text.split()


def character_class(character: str) -> str:
    """`cjk`, `letter`, `digit`, or the character itself: what decides whether a space stands beside it."""
    if is_cjk(character):
        return "cjk"
    category = unicodedata.category(character)[0]
    if category in "LM" or character == UNKNOWN_TEXT:
        return "letter"
    return "digit" if category == "N" else character
