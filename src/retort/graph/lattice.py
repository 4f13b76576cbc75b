"""Lattices, and n-best lists of paths with different words."""

from __future__ import annotations

import heapq
import itertools
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_ARC = np.dtype(
    [("input", "<i4"), ("output", "<i4"), ("graph", "<f4"), ("acoustic", "<f4"), ("target", "<i4")]
)
_SIZES = struct.Struct("<iiQqqq")  # version, flags, properties, start, states, arcs
_FINAL = struct.Struct("<ffq")  # graph cost, acoustic cost, arcs
_END = -1


class Arc(NamedTuple):
    """An arc with its graph cost and acoustic cost."""

    source: int
    input: int
    output: int
    graph: float
    acoustic: float
    target: int


class LatticePath(NamedTuple):
    """A path through a lattice: labels without epsilons, and graph cost."""

    inputs: list[int]
    outputs: list[int]
    graph: float


@dataclass(frozen=True)
class Lattice:
    """An acyclic lattice.

    Attributes:
        start: start state.
        leaving: outgoing arcs of each state; final costs are arcs to the state -1.
    """

    start: int
    leaving: list[list[Arc]]

    @classmethod
    def read(cls, lattice: Any) -> Lattice:
        """Convert an OpenFst lattice, whose arcs are accessible only through a file."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "lattice"
            lattice.write(str(file))
            content = file.read_bytes()
        offset = 4
        for _ in range(2):  # the kinds of transducer and of arc
            offset += 4 + struct.unpack_from("<i", content, offset)[0]
        _, _, _, start, states, _ = _SIZES.unpack_from(content, offset)
        offset += _SIZES.size
        leaving = []
        for state in range(states):
            graph, acoustic, count = _FINAL.unpack_from(content, offset)
            rows = np.frombuffer(content, _ARC, count, offset + _FINAL.size)
            offset += _FINAL.size + rows.nbytes
            arcs = [Arc(state, *row) for row in rows.tolist()]
            if np.isfinite(graph):
                arcs.append(Arc(state, 0, 0, graph, acoustic, _END))
            leaving.append(arcs)
        return cls(start, leaving)

    def paths(self) -> Iterator[LatticePath]:
        """The best path of every word sequence, best first.

        A* search with the exact cost to the end. The first path to a state after given words is the best one;
        others with the same words are dropped.
        """
        to_come = self._to_come()
        number = itertools.count()
        heap: list[tuple[float, int, int, tuple[int, ...], _Step | None]]
        heap = [(to_come[self.start], next(number), self.start, (), None)]
        seen: set[tuple[int, tuple[int, ...]]] = set()
        while heap:
            cost, _, state, words, step = heapq.heappop(heap)
            if (state, words) in seen:
                continue
            seen.add((state, words))
            if state == _END:
                yield _path(step)
                continue
            past = cost - to_come[state]
            for arc in self.leaving[state]:
                rest = to_come[arc.target]
                if rest < np.inf:
                    extended = (*words, arc.output) if arc.output else words
                    total = past + arc.graph + arc.acoustic + rest
                    heapq.heappush(heap, (total, next(number), arc.target, extended, _Step(arc, step)))

    def _to_come(self) -> list[float]:
        """Cost of the best path from each state to an end; the last entry is the end itself."""
        costs = [np.inf] * len(self.leaving) + [0.0]
        for state in reversed(self._order()):
            for arc in self.leaving[state]:
                costs[state] = min(costs[state], arc.graph + arc.acoustic + costs[arc.target])
        return costs

    def _order(self) -> list[int]:
        """The states in topological order."""
        entering = [0] * (len(self.leaving) + 1)
        for arcs in self.leaving:
            for arc in arcs:
                entering[arc.target] += 1
        ready = [state for state in range(len(self.leaving)) if not entering[state]]
        order = []
        while ready:
            state = ready.pop()
            order.append(state)
            for arc in self.leaving[state]:
                entering[arc.target] -= 1
                if not entering[arc.target] and arc.target != _END:
                    ready.append(arc.target)
        return order


class _Step(NamedTuple):
    arc: Arc
    before: _Step | None


def _path(step: _Step | None) -> LatticePath:
    arcs = []
    while step is not None:
        arcs.append(step.arc)
        step = step.before
    arcs.reverse()
    return LatticePath(
        [arc.input for arc in arcs if arc.input],
        [arc.output for arc in arcs if arc.output],
        sum(arc.graph for arc in arcs),
    )
