"""Alignments and sentences as texts of units: what a language model over senones or phones reads.

Such a text is the sequence of units, each a symbol ("S12" for senone 12, a phone for itself), with one space between
them. Silences are left out, for text that was never spoken has none.
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
    """How a text writes a senone: `S12`."""
    return f"S{senone}"


def unit_symbols(tree: SenoneTree, unit: AcousticUnit) -> list[str]:
    """All symbols that texts of a unit can have: senones by number, phones by name; none of silence."""
    if unit == "phone":
        return [symbol for symbol in tree.phones.symbols if symbol != SILENCE]
    silent = {tree.senone(0, 0, 0, state) for state in range(tree.states)}
    return [senone_symbol(senone) for senone in range(tree.count) if senone not in silent]


def unit_text(alignment: Alignment, unit: AcousticUnit) -> tuple[str, NDArray[np.int64]]:
    """The text of an alignment, and which symbol of it each frame is.

    Runs are collapsed within phones, as the HMM has them: what two phones in a row share (the last of a word and the
    first of the next, or a senone that both are tied to) is two symbols, the states of one phone that are tied to one
    senone are one. So a text is of what was said, and not of how long.

    Returns:
        text: without silences; empty if there is nothing else.
        index: `(T,)` int64, the number of the symbol from 0, -1 in silences.
    """
    symbols, index = segments(alignment, unit, silence=False)
    names = [senone_symbol(each) if isinstance(each, int) else each for each in symbols]
    return " ".join(names), index.astype(np.int64)


def pause_share(alignments: Iterable[Alignment]) -> float:
    """Share of the places between two words that have a silence; 0 without any such place."""
    silent = [
        after.start > before.start + before.frames
        for each in alignments
        for before, after in zip(each.words, each.words[1:])
    ]
    return sum(silent) / max(len(silent), 1)


def pronounce_units(
    words: Sequence[str],
    lexicon: Pronunciations,
    tree: SenoneTree,
    unit: AcousticUnit,
    draw: random.Random | None = None,
) -> str:
    """The text of words that nobody spoke: :class:`UnitPronouncer` for a single sentence.

    Raises:
        BadUtterance: a word has no pronunciation.
    """
    return UnitPronouncer(lexicon, tree, unit)(words, draw)


class UnitPronouncer:
    """Says words in units: a lexicon makes phones of them, a tree makes senones of phones and their neighbours.

    Beyond both ends is silence, as a neighbour only, and between words where the call says so. What it says is the
    :func:`unit_text` of an alignment of the same pronunciations that has silences in the same places, and a frame or
    more in every state.

    Words, and phones between neighbours, are kept once they were said: 12 words take some 20 microseconds.

    Args:
        lexicon: pronunciations with a phone that the tree does not know are left out.
        tree: of the senones; of phones, which there are.
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
        """The text of `words`, of each the first pronunciation, or one that `draw` chooses.

        Args:
            pauses: of each word but the last whether a silence follows; None: after none. Only senones tell.

        Raises:
            BadUtterance: a word has none.
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
        """The words that have no pronunciation in the tree's phones, each once, in their order."""
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
    """One pronunciation: phone ids, and the symbols in it that do not hang on the words around it."""

    phones: tuple[int, ...]
    inside: str


class _Triphones(dict[tuple[int, int, int], str]):
    """Left, middle and right phone to the text of the middle one's senones, filled as triphones are met."""

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
