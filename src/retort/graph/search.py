"""Search of a decoding graph with the scores of an acoustic model, by kaldi-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import BadUtterance, UserError
from retort.graph.build import Graph
from retort.graph.fst import wheel
from retort.graph.lattice import Lattice
from retort.graph.word_times import TimedWord, WordTimes

_FEWEST = 20
"""Minimum number of active states, as in Kaldi."""


@dataclass(frozen=True)
class GraphHypothesis:
    """A path through a decoding graph.

    Attributes:
        words: words in order, with their frames.
        numbers: numbers of the words in the graph.
        columns: `(T,)` int32, column of the scores for each frame: its senone, or the CTC label.
        graph_cost: cost of lexicon, language model and transitions.
        acoustic_cost: negative sum of the unscaled frame scores.
        cost: total cost that the search minimises: graph cost plus scaled acoustic cost.
    """

    words: list[TimedWord]
    numbers: list[int]
    columns: NDArray[np.int32]
    graph_cost: float
    acoustic_cost: float
    cost: float

    @property
    def text(self) -> str:
        """The words separated by spaces."""
        return " ".join(word.text for word in self.words)


class Settings(NamedTuple):
    """Settings of :class:`GraphSearch`."""

    acoustic_scale: float
    beam: float
    max_active: int
    lattice_beam: float


class GraphSearch:
    """Viterbi beam search of a decoding graph.

    Args:
        graph: the decoding graph.
        acoustic_scale: scale of the scores.
        beam: paths whose cost exceeds the best one by more than this are pruned.
        max_active: maximum number of active states in :meth:`search`; at least 2.
        lattice_beam: paths whose cost exceeds the best one by more than this are not in the lattice of
            :meth:`alternatives`.

    Raises:
        UserError: kaldi-decoder is not installed.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        graph: Graph,
        acoustic_scale: float = 0.1,
        beam: float = 15.0,
        max_active: int = 2000,
        lattice_beam: float = 8.0,
    ) -> None:
        if min(acoustic_scale, beam, lattice_beam, max_active - 1) <= 0:
            raise ValueError("acoustic_scale, beam and lattice_beam must be positive, max_active at least 2")
        self.graph = graph
        self.acoustic_scale, self.beam = acoustic_scale, beam
        self.settings = Settings(acoustic_scale, beam, max_active, lattice_beam)
        self._decoder = wheel("kaldi_decoder")
        self._options = self._decoder.FasterDecoderOptions(
            beam=beam, max_active=max_active, min_active=min(_FEWEST, max_active - 1)
        )
        self._lattice_options = self._decoder.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam)
        self._times = WordTimes(graph.about)

    def search(self, scores: NDArray[np.floating]) -> GraphHypothesis:
        """The best path.

        Args:
            scores: `(T, S)` log-likelihoods of the senones (log posterior minus log prior), or CTC
                log-posteriors.

        Raises:
            BadUtterance: there are no frames, a score is not finite, or no path fits within the beam.
            UserError: S does not match the graph.
        """
        values = self._checked(scores)
        # The decoder holds no references to graph and scores, so both need variables here.
        scaled = self._decoder.DecodableCtc(values * np.float32(self.acoustic_scale))
        decoder = self._decoder.FasterDecoder(self.graph.fst, self._options)
        decoder.decode(scaled)
        if not decoder.reached_final():
            raise self._dead()
        found, path = decoder.get_best_path()
        if not found:
            raise self._dead()
        _, inputs, outputs, weight = wheel("kaldifst").get_linear_symbol_sequence(path)
        return self._hypothesis(values, inputs, outputs, weight.value1)

    def alternatives(self, scores: NDArray[np.floating], most: int) -> list[GraphHypothesis]:
        """N-best list of paths with different words: at most `most`, within the lattice beam.

        The lattice decoder has no `max_active`, so flat score distributions make it slow.

        Raises:
            As :meth:`search`.
        """
        values = self._checked(scores)
        scaled = self._decoder.DecodableCtc(values * np.float32(self.acoustic_scale))
        decoder = self._decoder.LatticeSimpleDecoder(self.graph.fst, self._lattice_options)
        if not decoder.decode(scaled):
            raise self._dead()
        found, lattice = decoder.get_raw_lattice()
        if not found:
            raise self._dead()
        paths = islice(Lattice.read(lattice).paths(), most)
        return [self._hypothesis(values, path.inputs, path.outputs, path.graph) for path in paths]

    def _checked(self, scores: NDArray[np.floating]) -> NDArray[np.float32]:
        values = np.ascontiguousarray(scores, np.float32)
        inputs = self.graph.about.inputs
        if values.ndim != 2 or values.shape[1] != inputs:
            raise UserError(
                f"the decoding graph reads {inputs:,} scores per frame, but the array has shape {values.shape}",
                remedy="Build the graph for this model",
            )
        if not len(values):
            raise BadUtterance("no frames to decode")
        if not (values < np.inf).all():
            raise BadUtterance("the model's scores are not finite")
        return values

    def _dead(self) -> Any:
        return BadUtterance(
            f"no path of the decoding graph reaches a final state (beam {self.beam:g})",
            remedy="Use a wider beam; if that does not help, the utterance is too short for any words of the graph",
        )

    def _hypothesis(
        self, values: NDArray[np.float32], inputs: Sequence[int], outputs: Sequence[int], graph_cost: float
    ) -> GraphHypothesis:
        columns = np.asarray(inputs, np.int32) - 1
        numbers = [label - 1 for label in outputs]
        acoustic = -float(values[np.arange(len(values)), columns].sum(dtype=np.float64))
        spans = self._times(columns.tolist(), numbers)
        words = [TimedWord(self.graph.words[number], *span) for number, span in zip(numbers, spans)]
        return GraphHypothesis(
            words, numbers, columns, graph_cost, acoustic, graph_cost + self.acoustic_scale * acoustic
        )
