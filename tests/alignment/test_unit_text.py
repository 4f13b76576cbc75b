"""Texts of units, from alignments and from words alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_systems import LEXICON, PHONES, random_tree

from retort.alignment.alignment import Alignment, Timed, subsample
from retort.alignment.tree import SenoneTree
from retort.alignment.unit_text import (
    AcousticUnit,
    UnitPronouncer,
    pause_share,
    unit_symbols,
    unit_text,
)
from retort.common.errors import BadUtterance
from tiny_alignments import from_phones
from tiny_units import pronounce_units

TREES = {states: random_tree(3, states, 30) for states in (1, 3)}
UNITS = st.sampled_from(["senone", "phone"])
WORDS = st.lists(st.sampled_from(LEXICON.words), min_size=1, max_size=6)


def spoken(
    words: list[str],
    ways: list[int],
    tree: SenoneTree,
    lengths: random.Random,
    apart: Sequence[bool] = (),
) -> Alignment:
    """Words with silence at both ends and where `apart` has it, each phone as long as it must be or longer."""
    phones: list[Timed] = []
    timed: list[Timed] = []

    def say(symbols: Sequence[str]) -> int:
        """The frame after them."""
        for symbol in symbols:
            start = phones[-1].start + phones[-1].frames if phones else 0
            phones.append(Timed(symbol, start, tree.states + lengths.randrange(4)))
        return phones[-1].start + phones[-1].frames

    begin = say(["SIL"])
    for word, way, silent in zip(words, ways, [*apart, *[False] * len(words)]):
        end = say(LEXICON[word][way % len(LEXICON[word])])
        timed.append(Timed(word, begin, end - begin))
        begin = say(["SIL"]) if silent else end
    say(["SIL"])
    return from_phones("u", timed, phones, tree)


def slowly(alignment: Alignment, unit: AcousticUnit) -> tuple[list[str], list[int]]:
    """Frame by frame: a symbol begins with a phone, and within it where the senone changes."""
    symbols: list[str] = []
    index = [-1] * len(alignment.senones)
    for phone in alignment.phones:
        before = None
        for frame in range(phone.start, phone.start + phone.frames):
            if phone.symbol == "SIL":
                continue
            now = phone.symbol if unit == "phone" else f"S{alignment.senones[frame]}"
            if now != before:
                symbols.append(now)
            index[frame], before = len(symbols) - 1, now
    return symbols, index


def test_by_hand() -> None:
    tree = SenoneTree.monophone(PHONES, 3)
    phones = [Timed("SIL", 0, 3), Timed("A", 3, 4), Timed("A", 7, 3), Timed("SIL", 10, 3), Timed("B", 13, 3)]
    alignment = from_phones("u", [], phones, tree)
    text, index = unit_text(alignment, "senone")
    assert text == "S3 S4 S5 S3 S4 S5 S6 S7 S8"
    assert index.dtype == np.int64
    assert index.tolist() == [-1, -1, -1, 0, 0, 1, 2, 3, 4, 5, -1, -1, -1, 6, 7, 8]
    text, index = unit_text(alignment, "phone")
    assert text == "A A B"
    assert index.tolist() == [-1] * 3 + [0] * 4 + [1] * 3 + [-1] * 3 + [2] * 3


def test_what_two_phones_share_is_two_symbols_and_what_two_states_share_is_one() -> None:
    tied = SenoneTree(PHONES, 2, [[0, 0], [1, 1], [1, 2], [3, 3], [4, 5]])
    alignment = from_phones("u", [], [Timed("A", 0, 4), Timed("B", 4, 2), Timed("B", 6, 2)], tied)
    text, index = unit_text(alignment, "senone")
    assert (text, index.tolist()) == ("S1 S1 S2 S1 S2", [0, 0, 0, 0, 1, 2, 3, 4])
    assert pronounce_units(["x"], {"x": [["A", "B", "B"]]}, tied, "senone") == text


def test_only_silence_is_an_empty_text() -> None:
    tree = TREES[3]
    alignment = from_phones("u", [], [Timed("SIL", 0, 9)], tree)
    for unit in ("senone", "phone"):
        text, index = unit_text(alignment, unit)
        assert (text, index.tolist()) == ("", [-1] * 9)
        assert pronounce_units([], LEXICON, tree, unit) == ""


@settings(max_examples=40)
@given(
    WORDS,
    st.lists(st.integers(0, 5), min_size=6, max_size=6),
    UNITS,
    st.sampled_from([1, 3]),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(0, 99),
)
def test_words_alone_say_the_same(
    words: list[str], ways: list[int], unit: AcousticUnit, states: int, silent: list[bool], seed: int
) -> None:
    tree, apart = TREES[states], silent[: len(words) - 1]
    alignment = spoken(words, ways, tree, random.Random(seed), apart)
    assert pause_share([alignment]) == (sum(apart) / len(apart) if apart else 0)
    text, index = unit_text(alignment, unit)
    symbols, frames = slowly(alignment, unit)
    assert (text.split(" "), index.tolist()) == (symbols, frames)
    chosen = {
        f"{word} {place}": [LEXICON[word][way % len(LEXICON[word])]]
        for place, (word, way) in enumerate(zip(words, ways))
    }
    if not any(apart):
        assert pronounce_units(list(chosen), chosen, tree, unit) == text
    speaker = UnitPronouncer(chosen, tree, unit)  # and no less so when it knows all of it already
    assert {speaker(list(chosen), pauses=apart) for _ in range(2)} == {text}
    assert set(symbols) <= set(unit_symbols(tree, unit))


def test_a_silence_between_words_changes_only_its_neighbours() -> None:
    """Next to a pause a phone has silence for a neighbour."""
    tree = TREES[3]
    phones = [Timed("C", 0, 3), Timed("A", 3, 3), Timed("SIL", 6, 3), Timed("D", 9, 3)]
    text, _ = unit_text(from_phones("u", [], phones, tree), "senone")
    alone = [pronounce_units([word], LEXICON, tree, "senone") for word in ("ca", "d")]
    assert text == " ".join(alone)
    assert text != pronounce_units(["ca", "d"], LEXICON, tree, "senone")
    assert text == UnitPronouncer(LEXICON, tree, "senone")(["ca", "d"], pauses=[True])


def test_long_frames() -> None:
    tree = TREES[1]
    alignment = spoken(["bad", "d"], [0, 0], tree, random.Random(0))
    low = subsample(
        from_phones(
            "u", [], [p._replace(start=3 * p.start, frames=3 * p.frames) for p in alignment.phones], tree
        ),
        3,
    )
    text, index = unit_text(low, "senone")
    assert text == pronounce_units(["bad", "d"], LEXICON, tree, "senone")
    assert len(index) == len(alignment.senones)


def test_a_draw_chooses_among_pronunciations() -> None:
    draw = random.Random(1)
    output = {pronounce_units(["ca", "d"], LEXICON, TREES[1], "phone", draw) for _ in range(20)}
    assert output == {"C A D", "B D"}
    speaker = UnitPronouncer(LEXICON, TREES[3], "senone")
    drawn = [speaker(["ca", "ca"], random.Random(seed)) for seed in (5, 5)]
    assert drawn[0] == drawn[1]
    ways = [{"1": [first], "2": [second]} for first, second in itertools.product(LEXICON["ca"], repeat=2)]
    assert drawn[0] in {pronounce_units(["1", "2"], each, TREES[3], "senone") for each in ways}


def test_words_without_a_pronunciation() -> None:
    lexicon = {"a": [["A"]], "foreign": [["A", "X"]], "silent": [["SIL"]], "two": [["X"], ["B"]], "none": []}
    speaker = UnitPronouncer(lexicon, TREES[1], "phone")
    assert speaker(["a", "two"]) == "A B"
    assert speaker.missing(["a", "foreign", "two", "silent", "new", "none", "new"]) == [
        "foreign",
        "silent",
        "new",
        "none",
    ]
    for word in ("foreign", "silent", "new", "none"):
        with pytest.raises(BadUtterance, match=f"no pronunciation of {word}"):
            speaker(["a", word])


def test_symbols_of_silence_are_in_no_text() -> None:
    assert unit_symbols(TREES[1], "phone") == ["A", "B", "C", "D"]
    monophone = SenoneTree.monophone(PHONES, 3)
    assert unit_symbols(monophone, "senone") == [f"S{senone}" for senone in range(3, 15)]
