"""Searches whose scores of frames go through a decoding graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from retort.decoding.beam import Candidate
from retort.decoding.graph_search import GraphHypothesis, GraphSearch
from retort.decoding.greedy import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.search import Found, Search
from retort.decoding.workplace import Workplace
from retort.errors import BadUtterance
from retort.students.student import Encoded


class FrameScores(NamedTuple):
    """Of a batch on the CPU: what the graph adds up, and the log-probabilities that tell how sure it is.

    Attributes:
        scores, log_probs: `(B, T, S)` float32.
    """

    scores: NDArray[np.float32]
    log_probs: NDArray[np.float32]


class ThroughGraph(Search):
    """From scores of frames to readings.

    `options.beam` is how many readings are kept of an utterance: of one the best path is looked for, of more those
    of a lattice. How far a path may fall behind is the graph search's own beam.

    Args:
        options: how to search.
        paths: the graph with its scale.
        workplace: where to search.
    """

    def __init__(self, options: DecodingOptions, paths: GraphSearch, workplace: Workplace) -> None:
        super().__init__(options)
        self.paths, self.workplace = paths, workplace
        self.workers = workplace.jobs

    @abstractmethod
    def frame_scores(self, encoded: Encoded) -> FrameScores:
        """Of all frames, those behind an utterance too."""

    @abstractmethod
    def hypothesis(self, found: GraphHypothesis, log_probs: NDArray[np.float32]) -> Hypothesis:
        """A path as ids with their times.

        Args:
            log_probs: `(T, S)` of the utterance.
        """

    def __call__(self, encoded: Encoded) -> Sequence[Found]:
        """Readings of each utterance, or why the graph has none."""
        return self.batches([encoded])[0]

    @torch.inference_mode()
    def batches(self, encoded: Sequence[Encoded]) -> list[Sequence[Found]]:
        """Those of several batches, whose utterances are searched side by side."""
        utterances = []
        for each in encoded:
            made = self.frame_scores(each)
            for row, length in enumerate(each.lengths.tolist()):
                utterances.append(FrameScores(made.scores[row, :length], made.log_probs[row, :length]))
        found = self.workplace.readings(self.paths, [each.scores for each in utterances], self.options.beam)
        said = iter([self._candidates(*each) for each in zip(found, utterances)])
        return [[next(said) for _ in range(len(each.lengths))] for each in encoded]

    def prepare(self, utterances: int) -> None:
        """Start the processes."""
        self.workplace.prepare(self.paths, utterances)

    def _candidates(self, found: list[GraphHypothesis] | BadUtterance, made: FrameScores) -> Found:
        if isinstance(found, BadUtterance):
            return found
        return [Candidate(self.hypothesis(each, made.log_probs), -each.cost) for each in found]
