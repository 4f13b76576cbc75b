"""Texts of senones or phones for language models, from alignments and from sentences.

A text is a sequence of unit symbols ("S12" for senone 12, a phone for itself) separated by spaces. Silences
are left out, since text without audio has none.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.alignment import Alignment, segments
from retort.alignment.phones import SILENCE
from retort.alignment.tree import SenoneTree
from retort.common.errors import BadUtterance

AcousticUnit = Literal["senone", "phone"]
Pronunciations = Mapping[str, Sequence[Sequence[str]]]


def senone_symbol(senone: int) -> str:
    """Symbol of a senone in a text: `S12`."""
    return f"S{senone}"


def unit_symbols(tree: SenoneTree, unit: AcousticUnit) -> list[str]:
    """All symbols that texts of a unit can have: senones by number, phones by name; none of silence."""
    if unit == "phone":
        return [symbol for symbol in tree.phones.symbols if symbol != SILENCE]
    silent = {tree.senone(0, 0, 0, state) for state in range(tree.states)}
    return [senone_symbol(senone) for senone in range(tree.count) if senone not in silent]


def unit_text(alignment: Alignment, unit: AcousticUnit) -> tuple[str, NDArray[np.int64]]:
    """The text of an alignment, and which symbol of it each frame is.

    Runs are merged within phones, as in the HMM: equal symbols of two consecutive phones stay two symbols,
    while states of one phone that share a senone are one. Durations have no influence on the text.

    Returns:
        text: text without silences; may be empty.
        index: `(T,)` int64, index of the symbol of each frame, -1 in silences.
    """
    symbols, index = segments(alignment, unit, silence=False)
    names = [senone_symbol(each) if isinstance(each, int) else each for each in symbols]
    return " ".join(names), index.astype(np.int64)


def pause_share(alignments: Iterable[Alignment]) -> float:
    """Fraction of word boundaries with a silence; 0 without word boundaries."""
    silent = [
        after.start > before.start + before.frames
        for each in alignments
        for before, after in zip(each.words, each.words[1:])
    ]
    return sum(silent) / max(len(silent), 1)


class UnitPronouncer:
    """Converts words to units: a lexicon maps words to phones, a tree maps phones in context to senones.

    The context outside the sentence is silence, and also between words with a pause. The result is the
    :func:`unit_text` of an alignment of the same pronunciations with silences at the same positions and at
    least one frame in every state.

    Results for words and triphones are cached: 12 words take about 20 microseconds.

    Args:
        lexicon: pronunciations with a phone that is not in the tree are left out.
        tree: tree of the senones and phones.
    """

    def __init__(self, lexicon: Pronunciations, tree: SenoneTree, unit: AcousticUnit) -> None:
        self.lexicon, self.tree, self.unit = lexicon, tree, unit
        self._known: dict[str, tuple[_Pronunciation, ...]] = {}
        self._triphones = _Triphones(tree)

    def __call__(
        self,
        words: Sequence[str],
        draw: random.Random | None = None,
        pauses: Sequence[bool] | None = None,
    ) -> str:
        """The text of `words`, with the first pronunciation of each or one that `draw` chooses.

        Args:
            pauses: for each word but the last whether a silence follows; None for no silences. Only senones
                depend on it.

        Raises:
            BadUtterance: a word has no pronunciation.
        """
        chosen = []
        for word in words:
            pronunciations = self._known.get(word) or self._pronounce(word)
            if not pronunciations:
                raise BadUtterance(f"no pronunciation of {word}")
            chosen.append(pronunciations[0] if draw is None or len(pronunciations) == 1 else draw.choice(pronunciations))
        if self.unit == "phone":
            return " ".join(pronunciation.inside for pronunciation in chosen)
        return self._senones(chosen, [False] * len(chosen[1:]) if pauses is None else pauses)

    def missing(self, words: Iterable[str]) -> list[str]:
        """Words without a pronunciation in the tree's phones, without duplicates, in order."""
        return [word for word in dict.fromkeys(words) if not (self._known.get(word) or self._pronounce(word))]

    def _pronounce(self, word: str) -> tuple[_Pronunciation, ...]:
        ids = self.tree.phones.ids
        found = [
            tuple(ids[phone] for phone in phones)
            for phones in self.lexicon.get(word, ())
            if phones and all(phone in ids and phone != SILENCE for phone in phones)
        ]
        self._known[word] = tuple(_Pronunciation(phones, self._inside(phones)) for phones in found)
        return self._known[word]

    def _inside(self, phones: tuple[int, ...]) -> str:
        if self.unit == "phone":
            return " ".join(self.tree.phones.symbols[phone] for phone in phones)
        return " ".join(self._triphones[each] for each in zip(phones, phones[1:], phones[2:]))

    def _senones(self, chosen: Sequence[_Pronunciation], pauses: Sequence[bool]) -> str:
        triphones, parts, left = self._triphones, [], 0
        rights = [0 if silent else pronunciation.phones[0] for pronunciation, silent in zip(chosen[1:], pauses)]
        for (phones, inside), right in zip(chosen, [*rights, 0]):
            if len(phones) == 1:
                parts.append(triphones[left, phones[0], right])
            else:
                parts.append(triphones[left, phones[0], phones[1]])
                if inside:
                    parts.append(inside)
                parts.append(triphones[phones[-2], phones[-1], right])
            left = phones[-1] if right else 0
        return " ".join(parts)


class _Pronunciation(NamedTuple):
    """A pronunciation: phone ids, and the symbols that do not depend on the neighbouring words."""

    phones: tuple[int, ...]
    inside: str


class _Triphones(dict[tuple[int, int, int], str]):
    """Cache from triphones (left, middle, right) to the text of the middle phone's senones."""

    def __init__(self, tree: SenoneTree) -> None:
        super().__init__()
        self._tree = tree

    def __missing__(self, triphone: tuple[int, int, int]) -> str:
        senones = [self._tree.senone(*triphone, state) for state in range(self._tree.states)]
        runs = [each for place, each in enumerate(senones) if place == 0 or each != senones[place - 1]]
        self[triphone] = " ".join(map(senone_symbol, runs))
        return self[triphone]


Span = tuple[int, int]


def piece_segments(alignment: Alignment, text: str, spans: Sequence[Span]) -> NDArray[np.int64]:
    """The token of the transcript that each frame belongs to.

    The frames of a word are divided evenly among its characters, and each character's frames belong to its
    token: tokens have frames in proportion to their characters. A token may get no frames if the word has
    fewer frames than tokens, and so does a token of a space alone.

    Args:
        text: the transcript; it contains the alignment's words in order, in any case.
        spans: half-open character spans of the tokens in `text`, in order. A shared character belongs to the
            first token.

    Returns:
        `(T,)`, -1 for frames outside words or of characters without a token.

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
        spelled = "".join(text[place] for place in own)
        if spelled.casefold() != word.symbol.casefold():
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
