"""The best words of a decoding graph for the scores of an acoustic model, by kaldi-decoder."""

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
"""States that go on however far they are behind, as Kaldi has it."""


@dataclass(frozen=True)
class GraphHypothesis:
    """What was heard.

    Attributes:
        words: in order, with their frames.
        numbers: of these words in the graph.
        columns: `(T,)` int32, which of the scores each frame's is: its senone, or the column of CTC.
        graph_cost: of lexicon, language model and transitions.
        acoustic_cost: negative sum of the frames' scores, unscaled.
        cost: what the search made smallest: the graph's and, scaled, the acoustic one.
    """

    words: list[TimedWord]
    numbers: list[int]
    columns: NDArray[np.int32]
    graph_cost: float
    acoustic_cost: float
    cost: float

    @property
    def text(self) -> str:
        """The words with spaces between them."""
        return " ".join(word.text for word in self.words)


class Settings(NamedTuple):
    """Of a search, as :class:`GraphSearch` takes them."""

    acoustic_scale: float
    beam: float
    max_active: int
    lattice_beam: float


class GraphSearch:
    """Token passing with a beam.

    Args:
        graph: what can be said.
        acoustic_scale: of the scores against the graph.
        beam: paths that cost so much more than the best one so far are given up.
        max_active: most states at once, of :meth:`search`; at least 2.
        lattice_beam: paths that cost so much more than the best one are none of :meth:`alternatives`.

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
            raise ValueError("acoustic_scale, beam and lattice_beam are positive, max_active is at least 2")
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
            scores: `(T, S)` log-likelihoods of the senones (log posterior less log prior), or CTC's log-posteriors.

        Raises:
            BadUtterance: no frames, scores that are no numbers, or no path fits within the beam.
            UserError: S is not what the graph reads.
        """
        values = self._checked(scores)
        # The decoder keeps neither graph nor scores alive: both have names here.
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
        """The best paths that say different words, the best first: at most `most`, fewer within the lattice's beam.

        The decoder of lattices knows no `max_active`: scores that tell little apart make it slow.

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
                f"the decoding graph reads {inputs:,} scores a frame, not an array of {values.shape}",
                remedy="Build the graph for this model",
            )
        if not len(values):
            raise BadUtterance("no frames to decode")
        if not (values < np.inf).all():
            raise BadUtterance("the model's scores are not finite")
        return values

    def _dead(self) -> Any:
        return BadUtterance(
            f"no path of the decoding graph ends with it (beam {self.beam:g})",
            remedy="Widen the beam; if that does not help, it is too short for any words of the graph",
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
