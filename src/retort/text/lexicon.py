"""Pronunciation lexicons: words and their phones, in the format of the CMU dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from retort.common.errors import UserError

Stress = Literal["keep", "strip"]
Pronunciation = tuple[str, ...]

_VARIANT = re.compile(r"(?<=.)\(\d+\)$")
# Lower-case phones with digits are tones ("ai4") and are kept: only ARPAbet's vowels have stress.
_STRESSED = re.compile(r"([A-Z]+)[012]")


class Lexicon(Mapping[str, tuple[Pronunciation, ...]]):
    """Maps words to their distinct pronunciations, in the given order.

    Args:
        entries: words with any number of pronunciations each; words without any are omitted.

    Raises:
        UserError: there is no word, or a pronunciation without a phone.
    """

    def __init__(self, entries: Mapping[str, Iterable[Iterable[str]]]) -> None:
        self._entries = {
            word: tuple(dict.fromkeys(tuple(phones) for phones in pronunciations))
            for word, pronunciations in entries.items()
        }
        self._entries = {word: found for word, found in self._entries.items() if found}
        if not self._entries:
            raise UserError("the lexicon has no word", remedy="Write one line `WORD PHONE PHONE ...` per word")
        for word, found in self._entries.items():
            if () in found:
                raise UserError(f"'{word}' has a pronunciation without phones", remedy="Correct the lexicon")

    def __getitem__(self, word: str) -> tuple[Pronunciation, ...]:
        return self._entries[word]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def phones(self) -> tuple[str, ...]:
        """The phones, sorted, without silence."""
        return tuple(sorted({phone for found in self.values() for phones in found for phone in phones}))

    def missing(self, words: Iterable[str]) -> list[str]:
        """The distinct words without a pronunciation, in order."""
        return [word for word in dict.fromkeys(words) if word not in self._entries]

    def only(self, words: Iterable[str]) -> Lexicon:
        """The lexicon limited to `words`.

        Raises:
            UserError: it has none of them.
        """
        return Lexicon({word: self[word] for word in dict.fromkeys(words) if word in self._entries})

    def extended(self, other: Mapping[str, Iterable[Iterable[str]]]) -> Lexicon:
        """The lexicon with the words of `other` that it lacks."""
        return Lexicon({**other, **self._entries})

    def __str__(self) -> str:
        """In the format of :func:`read_lexicon`: one line per pronunciation."""
        lines = (f"{word} {' '.join(phones)}\n" for word, found in self.items() for phones in found)
        return "".join(lines)


def read_lexicon(path: str | Path, *, stress: Stress = "strip") -> Lexicon:
    """Read lines `WORD PHONE PHONE ...`.

    Further pronunciations are on lines of `WORD(2)` or of the same word; pronunciations that become
    equal are merged. Lines that begin with `;;;` are comments, and so is what follows ` #`.

    Args:
        path: UTF-8 text; words keep their case.
        stress: whether the digits 0, 1, 2 after upper-case phones are kept.

    Raises:
        UserError: it cannot be read, is empty, or has a word without phones.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=path, remedy="Convert it to UTF-8") from None
    entries: dict[str, list[list[str]]] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if line.startswith(";;;") or not line.strip():
            continue
        word, *phones = line.split(" #", 1)[0].split()
        if not phones:
            raise UserError(f"line {number}: '{word}' has no phones", where=path, remedy="Correct the lexicon")
        if stress == "strip":
            phones = [
                _STRESSED.sub(r"\1", phone) if _STRESSED.fullmatch(phone) else phone for phone in phones
            ]
        entries.setdefault(_VARIANT.sub("", word), []).append(phones)
    if not entries:
        raise UserError("contains no word", where=path, remedy="Write one line `WORD PHONE PHONE ...` per word")
    return Lexicon(entries)
