"""Times of the words on a path through a decoding graph.

The positions of word labels on a path are not word times, because determinisation moves them. The columns of
the frames determine the units and their states, and words are spelled in units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from retort.graph.build import About


class TimedWord(NamedTuple):
    """A word with its first frame and its number of frames."""

    text: str
    start: int
    frames: int


class WordTimes:
    """Computes the frames of the words on a path.

    Args:
        about: description of the graph.
    """

    def __init__(self, about: About) -> None:
        self.about = about
        self._states = 1 + max(state for _, state, _ in about.emissions)
        self._columns: dict[tuple[int, int], set[int]] = defaultdict(set)
        for unit, state, column in about.emissions:
            self._columns[unit, state].add(column)

    def __call__(self, columns: Sequence[int], words: Sequence[int]) -> list[tuple[int, int]]:
        """First frame and number of frames of each word.

        Frames between words belong to no word. If several divisions are possible (for adjacent equal units of
        one state), one of them is returned.

        Args:
            columns: `(T,)`, column of the scores for each frame.
            words: numbers of the words, in order.

        Raises:
            ValueError: the path does not spell the words.
        """
        plan = _Plan(self.about, self._states, words)
        back: list[dict[int, int]] = []
        active = {_START: _START}
        for column in columns:
            reached: dict[int, int] = {}
            for place in active:
                for following in plan.followers[place]:
                    if following not in reached and column in self._columns[plan.states[following]]:
                        reached[following] = place
            back.append(reached)
            active = reached
        ended = [place for place in active if place in plan.ends]
        if not ended:
            raise ValueError(f"a path of {len(columns)} frames does not spell its {len(words)} words")
        place = ended[0]
        first, last = [0] * len(words), [-1] * len(words)
        for frame in range(len(columns) - 1, -1, -1):
            word = plan.words[place]
            if word >= 0:
                first[word], last[word] = frame, max(frame, last[word])
            place = back[frame][place]
        return [(start, end - start + 1) for start, end in zip(first, last)]


_START = 0


class _Plan:
    """Positions of a path through a word sequence, and their successors.

    Attributes:
        states: unit and state of each position.
        words: index of the word of each position, -1 between words.
        followers: possible next positions, the position itself first.
        ends: positions where the path may end.
    """

    def __init__(self, about: About, states: int, words: Sequence[int]) -> None:
        self._about, self._count = about, states
        self.states: list[tuple[int, int]] = [(-1, -1)]
        self.words = [-1]
        self.followers: list[list[int]] = [[]]
        open_places = self._pause([_START])
        for index, word in enumerate(words):
            spelled = [self._spelling(open_places, index, units) for units in about.spellings[word]]
            open_places = self._pause([place for places in spelled for place in places])
        self.ends = set(open_places)

    def _spelling(self, before: list[int], word: int, units: Sequence[int]) -> list[int]:
        for number, unit in enumerate(units):
            if number and self._about.blanks:
                before = self._pause(before)
            before = [self._unit(before, word, unit)]
        return before

    def _pause(self, before: list[int]) -> list[int]:
        """Add an optional unit between words after `before`."""
        return [*before, self._unit(before, -1, self._about.between)]

    def _unit(self, before: list[int], word: int, unit: int) -> int:
        """Add a unit after any of `before`; returns its last position."""
        for state in range(self._count):
            place = len(self.states)
            for each in before:
                if not (self._about.blanks and self.states[each][0] == unit):
                    self.followers[each].append(place)
            self.states.append((unit, state))
            self.words.append(word)
            self.followers.append([place])
            before = [place]
        return place
