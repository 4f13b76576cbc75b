"""The search of a hybrid student: its scores of senones through a decoding graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.decoding.graph_search import GraphHypothesis, GraphSearch
from retort.decoding.greedy import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.through_graph import FrameScores, ThroughGraph
from retort.decoding.workplace import Workplace
from retort.errors import UserError
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


class HybridSearch(ThroughGraph):
    """From frames to words.

    Args:
        student: in eval mode.
        graph: what can be heard.
        options: how to search; language models other than the graph's have no say.
        workplace: where to search.

    Raises:
        UserError: the options name a language model.
    """

    def __init__(
        self, student: HybridStudent, graph: ScaledGraph, options: DecodingOptions, workplace: Workplace
    ) -> None:
        if options.suffix:
            raise UserError(
                "a hybrid model's language model is in its decoding graph, another cannot join",
                remedy="Leave --lm, --rescore and --graph out",
            )
        scale = options.acoustic_scale or graph.acoustic_scale
        super().__init__(options, GraphSearch(graph.graph, scale), workplace)
        self.student = student
        self.parameters["student"] = sum(each.numel() for each in student.parameters())

    def frame_scores(self, encoded: Encoded) -> FrameScores:
        """Log posteriors less log priors of the senones."""
        log_posteriors = self.student.log_posteriors(encoded)
        scores = log_posteriors - self.student.log_priors
        return FrameScores(scores.cpu().numpy(), log_posteriors.cpu().numpy())

    def hypothesis(self, found: GraphHypothesis, log_probs: NDArray[np.float32]) -> Hypothesis:
        """Words with their times; each is as sure as its frames' senones are in the mean."""
        sure = log_probs[np.arange(len(found.columns)), found.columns]
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
