"""Alignment of transcripts with given frame scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retort.alignment.tree import SenoneTree
from retort.alignment.utterance import UtteranceHmm, utterance_hmm
from retort.text.lexicon import Lexicon


class Transcriber:
    """Converts transcripts to HMMs.

    Args:
        loops: `(S,)`, self-loop probability of each senone.
    """

    def __init__(
        self, lexicon: Lexicon, tree: SenoneTree, loops: NDArray[np.float64], silence_probability: float
    ) -> None:
        self.lexicon = lexicon
        self.tree = tree
        self.loops = loops
        self.silence_probability = silence_probability

    def hmm(self, words: Sequence[str]) -> UtteranceHmm:
        """The HMM of at least one word, all in the lexicon."""
        ids = self.tree.phones.ids
        pronunciations = [[tuple(ids[phone] for phone in phones) for phones in self.lexicon[word]] for word in words]
        return utterance_hmm(pronunciations, self.tree, self.loops, self.silence_probability)


def obstacle(words: Sequence[str], frames: int, lexicon: Lexicon, states: int) -> str:
    """The reason why a transcript cannot be aligned with this number of frames; empty if it can."""
    if not words:
        return "its transcript is empty"
    if missing := lexicon.missing(words):
        return f"no pronunciation of {', '.join(missing)}"
    least = states * sum(min(map(len, lexicon[word])) for word in words)
    return f"too short: {frames} frames, but its phones need {least}" if frames < least else ""
