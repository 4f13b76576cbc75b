"""A small spoken world for language models over units: words that count, their phones, senones and alignments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from retort.alignment.alignment import Alignment, Timed
from retort.alignment.phones import Phones
from retort.alignment.store import AlignmentStore
from retort.alignment.tree import Node, Question, SenoneTree, Split
from retort.alignment.unit_text import AcousticUnit, Pronunciations, UnitPronouncer
from retort.text.lexicon import Lexicon
from tiny_alignments import from_phones, save_alignments

SPOKEN = "one W AH N, two T UW, three TH R IY, four F AO R, five F AY V, six S IH K S, seven S EH V AH N, eight EY T"
LEXICON = Lexicon({word: [phones] for word, *phones in (each.split() for each in SPOKEN.split(","))})
PHONES = Phones(LEXICON.phones)


def tiny_tree(seed: int = 0, states: int = 3) -> SenoneTree:
    """Two senones for each state of a phone, by a class of a neighbour; silence has one a state."""
    draw = random.Random(seed)
    count = 0

    def leaf() -> int:
        nonlocal count
        count += 1
        return count - 1

    def root(phone: int) -> Node:
        if not phone:
            return leaf()
        asked = frozenset(draw.sample(range(len(PHONES)), len(PHONES) // 2))
        return Split(Question(draw.random() < 0.5, asked), leaf(), leaf())

    return SenoneTree(PHONES, states, [[root(phone) for _ in range(states)] for phone in range(len(PHONES))])


def aligned(name: str, words: Sequence[str], tree: SenoneTree, seed: int = 0) -> Alignment:
    """Silence at both ends and sometimes between words, lengths at random."""
    draw = random.Random(seed)
    phones: list[Timed] = []

    def add(symbol: str) -> int:
        start = phones[-1].start + phones[-1].frames if phones else 0
        phones.append(Timed(symbol, start, tree.states + draw.randrange(4)))
        return start

    add("SIL")
    output = []
    for word in words:
        start, *_ = [add(phone) for phone in LEXICON[word][0]]
        output.append(Timed(word, start, phones[-1].start + phones[-1].frames - start))
        if draw.random() < 0.3:
            add("SIL")
    if phones[-1].symbol != "SIL":
        add("SIL")
    return from_phones(name, output, phones, tree)


def tiny_alignments(folder: Path, seed: int = 0, words: Sequence[str] = LEXICON.words) -> AlignmentStore:
    """A store of a few utterances in which each of the words is spoken."""
    tree = tiny_tree(seed)
    return save_alignments(folder, [aligned(f"u{n}", words, tree, n) for n in range(3)], tree, LEXICON)


def pronounce_units(
    words: Sequence[str],
    lexicon: Pronunciations,
    tree: SenoneTree,
    unit: AcousticUnit,
    draw: random.Random | None = None,
) -> str:
    """The units of one sentence."""
    return UnitPronouncer(lexicon, tree, unit)(words, draw)
