"""Small lexicons, trees and spoken sequences of features for the tests of alignment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.alignment.mfcc import CEPSTRA
from retort.alignment.phones import Phones
from retort.alignment.tree import SenoneTree, TriphoneStatistics, grow_tree
from retort.common.errors import BadUtterance
from retort.text.lexicon import Lexicon

LEXICON = Lexicon(
    {
        "ab": [["A", "B"]],
        "ca": [["C", "A"], ["B"]],
        "bad": [["B", "A", "D"]],
        "d": [["D"]],
        "cab": [["C", "A", "B"]],
        "dac": [["D", "A", "C"]],
    }
)
PHONES = Phones(LEXICON.phones)


def random_tree(seed: int, states: int = 1, senones: int = 12, phones: Phones = PHONES) -> SenoneTree:
    """Grown on random statistics, so that contexts matter."""
    draw = np.random.default_rng(seed)
    count = len(phones)
    grid = np.stack(np.meshgrid(*[np.arange(count)] * 3, np.arange(states), indexing="ij"), -1).reshape(-1, 4)
    keys = grid[(grid[:, 1] > 0) | ((grid[:, 0] == 0) & (grid[:, 2] == 0))]
    values = draw.normal(size=(len(keys), 2)) * 3
    frames = draw.uniform(5, 20, (len(keys), 1))
    sums = np.concatenate([values * frames, (values**2 + 1) * frames, frames], 1)
    order = np.lexsort(keys.T[::-1])
    return grow_tree(
        TriphoneStatistics(keys[order], sums[order]), phones, states, senones=senones, minimum_frames=5
    )


def sounds(seed: int = 0, spread: float = 4.0) -> dict[str, NDArray[np.float64]]:
    """The middle of each phone's features, far apart."""
    draw = np.random.default_rng(seed)
    return {symbol: draw.normal(size=CEPSTRA) * spread for symbol in PHONES.symbols}


class SpokenCorpus:
    """Utterances drawn from known Gaussians, as cuts whose cepstra `features` gives, and their true borders."""

    def __init__(self, count: int, seed: int = 0, noise: float = 1.0) -> None:
        draw = np.random.default_rng(seed)
        centres = sounds()
        self.cuts: list[Any] = []
        self.truth: dict[str, list[tuple[str, int, int]]] = {}
        self._cepstra: dict[str, NDArray[np.float32]] = {}
        for number in range(count):
            words = list(draw.choice(LEXICON.words, draw.integers(2, 5)))
            name = f"u{number:03d}"
            pieces: list[tuple[str, int]] = []
            for word in words:
                if draw.random() < 0.5:
                    pieces.append(("SIL", int(draw.integers(8, 25))))
                ways = LEXICON[word]
                pieces += [(phone, int(draw.integers(5, 14))) for phone in ways[draw.integers(len(ways))]]
            pieces.append(("SIL", int(draw.integers(8, 25))))
            frames = np.concatenate(
                [centres[phone] + noise * draw.normal(size=(length, CEPSTRA)) for phone, length in pieces]
            )
            starts = np.cumsum([0] + [length for _, length in pieces]).tolist()
            self.truth[name] = [(phone, start, length) for (phone, length), start in zip(pieces, starts)]
            self.add(name, " ".join(words), frames.astype(np.float32), f"s{number % 3}")

    def add(self, name: str, text: str, cepstra: NDArray[np.float32] | None, speaker: str = "s0") -> None:
        """One more; without cepstra its audio is bad."""
        supervision = SimpleNamespace(text=text, speaker=speaker)
        duration = 1.0 if cepstra is None else len(cepstra) / 100
        self.cuts.append(SimpleNamespace(id=name, supervisions=[supervision], duration=duration))
        if cepstra is not None:
            self._cepstra[name] = cepstra

    def features(self, cut: Any) -> NDArray[np.float32]:
        if cut.id not in self._cepstra:
            raise BadUtterance("its audio cannot be read", where=cut.id)
        return self._cepstra[cut.id]
