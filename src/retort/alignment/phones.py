"""The phones of a system and their ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError

SILENCE = "SIL"


class Phones:
    """Id 0 is silence, then come the phones, sorted.

    Args:
        phones: of the lexicon, without silence.

    Raises:
        UserError: there is none, or one has the name of silence.
    """

    def __init__(self, phones: Iterable[str]) -> None:
        names = sorted(set(phones))
        if not names:
            raise UserError("no phones", remedy="Give a lexicon with words")
        if SILENCE in names:
            raise UserError(
                f"'{SILENCE}' is a phone of the lexicon",
                remedy="Leave silences out: they stand between words anyway",
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
"""Emitting states of a phone where a frame is 10 ms; one where it is 30 ms."""
UNTRAINED_LOOP = 0.75
"""Probability of staying in a state of which nothing is known."""
_LOOPS = (0.01, 0.99)
_PRIOR_VISITS = 2.0
"""So many visits as :data:`UNTRAINED_LOOP` expects are added to what was counted."""


def self_loops(frames: NDArray[np.integer], visits: NDArray[np.integer]) -> NDArray[np.float64]:
    """Probability of staying in each senone, from how often it was entered and how long it lasted in all.

    A visit of n frames is n - 1 loops and one step on. Counts are smoothed, the result is within [0.01, 0.99].

    Args:
        frames, visits: `(S,)`.
    """
    prior = _PRIOR_VISITS / (1 - UNTRAINED_LOOP)
    leaving = (visits + _PRIOR_VISITS) / (frames + prior)
    return np.clip(1 - leaving, *_LOOPS)


def priors(frames: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of each senone among all frames, `(S,)`; one that never occurs counts as half a frame."""
    counts = np.maximum(frames, 0.5)
    return counts / counts.sum()
