"""LG: the words that a lexicon and a language model share, in units (phones, pieces), determinised and minimised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retort.errors import UserError
from retort.hybrid.fst import FINER, to_openfst, wheel
from retort.hybrid.grammar import grammar_fst, opened, words_of
from retort.hybrid.lexicon_fst import disambiguate, lexicon_fst

Pronunciations = Mapping[str, Sequence[Sequence[str]]]
Spelled = list[list[int]]
"""The pronunciations of a word in numbers of units."""


class LexiconGrammar:
    """Words with their pronunciations and what they cost in sentences.

    Attributes:
        words: of the language model, in its order, that have a pronunciation.
        spellings: of each its pronunciations in units.
        first: the same where a sentence begins; None if they are the same there.
        left_out: the others.

    Args:
        lexicon: words to pronunciations; one with a symbol that is not in `units` is left out.
        arpa: the language model.
        units: their numbers.
        first: pronunciations of words with which a sentence begins, if they are others there.

    Raises:
        UserError: the ARPA file cannot be read, or no word of it has a pronunciation.
    """

    def __init__(
        self,
        lexicon: Pronunciations,
        arpa: Path,
        units: Mapping[str, int],
        first: Pronunciations | None = None,
    ) -> None:
        self.arpa = arpa
        self.words: list[str] = []
        self.spellings: list[Spelled] = []
        self.first: list[Spelled] | None = None if first is None else []
        self.left_out: list[str] = []
        for word in words_of(arpa):
            known = _known(lexicon, word, units)
            begun = known if first is None else _known(first, word, units)
            if known and begun:
                self.words.append(word)
                self.spellings.append(known)
                if self.first is not None:
                    self.first.append(begun)
            else:
                self.left_out.append(word)
        if not self.words:
            example = f"'{self.left_out[0]}' is the first"
            raise UserError(
                f"none of its {len(self.left_out):,} words has a pronunciation ({example})",
                where=arpa,
                remedy="Give a lexicon of the same language, spelled in the same case",
            )

    @property
    def all_spellings(self) -> list[Spelled]:
        """Of each word, those at the start of a sentence among them."""
        if self.first is None:
            return self.spellings
        return [
            [*spelled, *(each for each in begun if each not in spelled)]
            for spelled, begun in zip(self.spellings, self.first)
        ]

    def key(self, *rest: Any) -> str:
        """16 hex digits of the words, their spellings, what is in the ARPA file and of whatever else counts.

        How the file is compressed, and when, does not count.
        """
        rest = rest if self.first is None else (*rest, self.first)
        digest = hashlib.sha256(json.dumps([self.words, self.spellings, *rest]).encode())
        with opened(self.arpa) as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(content.digest())
        return digest.hexdigest()[:16]

    def fst(
        self, units: int, silence: int | None = None, silence_probability: float = 0.5
    ) -> tuple[Any, list[int]]:
        """The transducer, of OpenFst: input label unit + 1, output label number of the word + 1.

        Args:
            units: all there are; disambiguation follows behind their labels.
            silence: the unit that may stand at the start and behind every word; None: there is none.

        Returns:
            it and the labels of disambiguation.

        Raises:
            UserError: the ARPA file is broken.
        """
        kaldifst = wheel("kaldifst")
        spellings = _labelled(self.spellings)
        begun = None if self.first is None else _labelled(self.first)
        first, backoff = units + 1, len(self.words) + 1
        pause = None if silence is None else silence + 1
        lexicon = to_openfst(lexicon_fst(spellings, first, backoff, pause, silence_probability, begun))
        kaldifst.arcsort(lexicon, "olabel")
        found = kaldifst.compose(lexicon, grammar_fst(self.arpa, self.words))
        kaldifst.determinize_star(found, delta=FINER)
        kaldifst.minimize_encoded(found, delta=FINER)
        symbols = max([*disambiguate(spellings), *disambiguate(begun or [])])
        return found, list(range(first, first + 1 + symbols))


def _known(lexicon: Pronunciations, word: str, units: Mapping[str, int]) -> Spelled:
    """The pronunciations of a word that have no other symbols than `units`."""
    found = dict.fromkeys(map(tuple, lexicon[word])) if word in lexicon else {}
    return [[units[unit] for unit in each] for each in found if each and all(u in units for u in each)]


def _labelled(spellings: Sequence[Spelled]) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (word, tuple(unit + 1 for unit in each))
        for word, spelled in enumerate(spellings, 1)
        for each in spelled
    ]
