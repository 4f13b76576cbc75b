"""The phones of a system and their ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError

SILENCE = "SIL"


class Phones:
    """The phone inventory: id 0 is silence, followed by the phones in sorted order.

    Args:
        phones: phones of the lexicon, without silence.

    Raises:
        UserError: there are no phones, or one has the name of silence.
    """

    def __init__(self, phones: Iterable[str]) -> None:
        names = sorted(set(phones))
        if not names:
            raise UserError("there are no phones", remedy="Give a lexicon with words")
        if SILENCE in names:
            raise UserError(
                f"'{SILENCE}' is a phone of the lexicon",
                remedy="Remove silences from the lexicon: they are optional between words",
            )
        self.symbols: tuple[str, ...] = (SILENCE, *names)
        self.ids: dict[str, int] = {symbol: index for index, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Phones) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)


STATES = 3
"""Emitting states of a phone for frames of 10 ms; it is 1 for frames of 30 ms."""
UNTRAINED_LOOP = 0.75
"""Self-loop probability of a state without training data."""
_LOOPS = (0.01, 0.99)
_PRIOR_VISITS = 2.0
"""Number of visits with the duration of :data:`UNTRAINED_LOOP` that are added to the counts."""


def self_loops(frames: NDArray[np.integer], visits: NDArray[np.integer]) -> NDArray[np.float64]:
    """Self-loop probability of each senone, from its number of frames and visits.

    A visit of n frames has n - 1 loops and one exit. Counts are smoothed; the result is within [0.01, 0.99].

    Args:
        frames, visits: `(S,)`.
    """
    prior = _PRIOR_VISITS / (1 - UNTRAINED_LOOP)
    leaving = (visits + _PRIOR_VISITS) / (frames + prior)
    return np.clip(1 - leaving, *_LOOPS)


def priors(frames: NDArray[np.integer]) -> NDArray[np.float64]:
    """Relative frequency of each senone, `(S,)`; one that never occurs counts as half a frame."""
    counts = np.maximum(frames, 0.5)
    return counts / counts.sum()
