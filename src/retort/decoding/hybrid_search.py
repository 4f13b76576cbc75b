"""The search of a hybrid student: its scores of senones through a decoding graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from retort.decoding.beam import Candidate
from retort.decoding.graph_search import GraphHypothesis, GraphSearch
from retort.decoding.greedy import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.search import Found, Search
from retort.errors import BadUtterance, UserError
from retort.hybrid.graph import Graph
from retort.students.hybrid import HybridStudent
from retort.students.student import Encoded
from retort.text.tokenizers import SPECIAL, WordTokenizer


@dataclass(frozen=True)
class ScaledGraph:
    """What a hybrid student is heard through.

    Attributes:
        graph: what can be said.
        acoustic_scale: of the student's scores against it, where nothing else is asked for.
    """

    graph: Graph
    acoustic_scale: float


class HybridSearch(Search):
    """From frames to words.

    `options.beam` is how many readings are kept of an utterance: of one the best path is looked for, of more those
    of a lattice. How far a path may fall behind is the graph search's own beam.

    Args:
        student: in eval mode.
        graph: what can be heard.
        options: how to search; language models other than the graph's have no say.

    Raises:
        UserError: the options name a language model.
    """

    def __init__(self, student: HybridStudent, graph: ScaledGraph, options: DecodingOptions) -> None:
        super().__init__(options)
        if options.suffix:
            raise UserError(
                "a hybrid model's language model is in its decoding graph, another cannot join",
                remedy="Leave --lm and --rescore out",
            )
        self.student = student
        self.paths = GraphSearch(graph.graph, options.acoustic_scale or graph.acoustic_scale)
        self.parameters["student"] = sum(each.numel() for each in student.parameters())

    @torch.inference_mode()
    def __call__(self, encoded: Encoded) -> list[Found]:
        """Readings of each utterance, or why the graph has none."""
        log_posteriors = self.student.log_posteriors(encoded)
        scores = (log_posteriors - self.student.log_priors).cpu().numpy()
        posteriors, lengths = log_posteriors.cpu().numpy(), encoded.lengths.tolist()
        return [
            self._utterance(scores[row, :length], posteriors[row, :length])
            for row, length in enumerate(lengths)
        ]

    def _utterance(self, scores: NDArray[np.float32], log_posteriors: NDArray[np.float32]) -> Found:
        most = self.options.beam
        try:
            found = [self.paths.search(scores)] if most == 1 else self.paths.alternatives(scores, most)
        except BadUtterance as error:
            return error
        return [Candidate(self._hypothesis(each, log_posteriors), -each.cost) for each in found]

    def _hypothesis(self, found: GraphHypothesis, log_posteriors: NDArray[np.float32]) -> Hypothesis:
        """Words with their times; each is as sure as its frames' senones are in the mean."""
        sure = log_posteriors[np.arange(len(found.columns)), found.columns]
        spans = [(word.start, word.start + word.frames) for word in found.words]
        return Hypothesis(
            [len(SPECIAL) + number for number in found.numbers],
            [float(sure[start:end].mean()) for start, end in spans],
            [float(end) for _, end in spans],
            [float(start) for start, _ in spans],
        )


def graph_words(graph: Graph) -> WordTokenizer:
    """The words of a graph as ids of hypotheses: their numbers behind the special ids."""
    return WordTokenizer(graph.words)
