"""The lexicon as a transducer from units (phones, pieces) to words.

Mohri, Pereira and Riley, "Speech recognition with weighted finite-state transducers" (2008), section 3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from retort.hybrid.fst import Fst, join

Spellings = Sequence[tuple[int, tuple[int, ...]]]
"""Pairs of a word's label and one of its pronunciations in labels of units."""


def disambiguate(spellings: Spellings) -> list[int]:
    """For each pronunciation which symbol must end it, from 1, so that no other is or begins with the same; 0: none."""
    times = Counter(units for _, units in spellings)
    beginnings = {units[:length] for units in times for length in range(1, len(units))}
    used: Counter[tuple[int, ...]] = Counter()
    found = []
    for _, units in spellings:
        if times[units] > 1 or units in beginnings:
            used[units] += 1
        found.append(used[units])
    return found


def lexicon_fst(
    spellings: Spellings,
    first_symbol: int,
    backoff: int,
    silence: int | None = None,
    silence_probability: float = 0.5,
    begun: Spellings | None = None,
) -> Fst:
    """Any sequence of words, with silence or without at the start and behind every word.

    Args:
        spellings: no pronunciation is empty.
        first_symbol: label of the symbol that lets the grammar's back-off pass; those of :func:`disambiguate` follow.
        backoff: label of back-off among the words.
        silence: its label; None for units that know none.
        silence_probability: of a silence at each place, in (0, 1).
        begun: pronunciations of the first word of a sentence, if they are others; not together with silence.
    """
    loop, ends = 0, 1
    rows: list[tuple[int, int, int, float, int]] = [(loop, first_symbol, backoff, 0.0, loop)]
    start, states, without = loop, 1, 0.0
    if silence is not None:
        start, states = 2, 3
        without = -math.log1p(-silence_probability)
        pause = -math.log(silence_probability)
        rows += [(start, 0, 0, without, loop), (start, 0, 0, pause, ends), (ends, silence, 0, 0.0, loop)]
    elif begun is not None:
        start, states = 1, 2
        rows.append((start, first_symbol, backoff, 0.0, start))
    places = [(loop, *each) for each in zip(spellings, disambiguate(spellings))]
    places += [(start, *each) for each in zip(begun or [], disambiguate(begun or []))]
    for place, (word, units), symbol in places:
        labels = [*units, first_symbol + symbol] if symbol else list(units)
        at, said = place, word
        for label in labels[:-1]:
            rows.append((at, label, said, 0.0, states))
            at, said, states = states, 0, states + 1
        rows.append((at, labels[-1], said, without, loop))
        if silence is not None:
            rows.append((at, labels[-1], said, pause, ends))
    finals = np.full(states, np.inf, np.float32)
    finals[loop] = 0.0
    if begun is not None:
        finals[start] = 0.0
    return Fst(start, finals, *join(tuple(zip(*rows))))
