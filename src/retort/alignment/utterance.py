"""The HMM of a transcript: its words with all pronunciations, and optional silence between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.alignment.tree import SenoneTree
from retort.alignment.viterbi import Arcs

Pronunciations = Sequence[Sequence[tuple[int, ...]]]
"""Pronunciations of each word of a transcript, in phone ids."""

_EDGE = -1
"""Placeholder for the context outside the utterance, which is silence."""
_SILENCE = 0


@dataclass
class UtteranceHmm:
    """Emitting states 0 to N - 1 with their senones, and the arcs between them."""

    senones: NDArray[np.int32]
    """(N,)"""
    places: NDArray[np.int32]
    """(N,): the phone instance of each state; a path visits an instance at most once."""
    phones: NDArray[np.int32]
    """(places,): phone ids."""
    words: NDArray[np.int32]
    """(places,): index in the transcript, -1 for silence."""
    arcs: Arcs


def utterance_hmm(
    pronunciations: Pronunciations,
    tree: SenoneTree,
    loops: NDArray[np.float64],
    silence_probability: float,
) -> UtteranceHmm:
    """Build the HMM of a transcript with at least one word.

    Phones have context across words and silences, so a phone next to an optional silence or a word with
    several pronunciations has one instance for each pair of neighbours. All pronunciations have the same
    weight.

    Args:
        loops: `(S,)`, self-loop probability of each senone.
        silence_probability: probability of silence at either end and between any two words.
    """
    plan = _Plan(pronunciations, silence_probability)
    places, entries, endings = _in_context(plan)
    states = tree.states
    senones = np.array(
        [
            tree.senone(max(left, 0), plan.phones[node], max(right, 0), state)
            for node, left, right in places
            for state in range(states)
        ],
        np.int32,
    )
    leave = np.log1p(-loops)[senones]
    steps = np.concatenate([[-np.inf], leave[:-1]])
    steps[::states] = -np.inf
    starts, ends = np.full(len(senones), -np.inf), np.full(len(senones), -np.inf)
    further: dict[int, list[tuple[int, float]]] = {}
    for place, arcs in enumerate(entries):
        target = place * states
        for before, weight in arcs:
            source = (before + 1) * states - 1
            if before == _EDGE:
                starts[target] = weight
            elif source == target - 1:
                steps[target] = weight + leave[source]
            else:
                further.setdefault(target, []).append((source, weight + leave[source]))
    for place, weight in endings:
        ends[(place + 1) * states - 1] = weight + leave[(place + 1) * states - 1]
    width = max(map(len, further.values()), default=0)
    sources = np.zeros((len(further), width), np.int64)
    weights = np.full((len(further), width), -np.inf)
    for row, found in enumerate(further.values()):
        sources[row, : len(found)] = [source for source, _ in found]
        weights[row, : len(found)] = [weight for _, weight in found]
    return UtteranceHmm(
        senones=senones,
        places=np.repeat(np.arange(len(places), dtype=np.int32), states),
        phones=np.array([plan.phones[node] for node, _, _ in places], np.int32),
        words=np.array([plan.words[node] for node, _, _ in places], np.int32),
        arcs=Arcs(
            loops=np.log(loops)[senones],
            steps=steps,
            targets=np.array(list(further), np.int64),
            sources=sources,
            weights=weights,
            starts=starts,
            ends=ends,
        ),
    )


class _Plan:
    """Phones without contexts, and their predecessors."""

    def __init__(self, pronunciations: Pronunciations, silence_probability: float) -> None:
        self.phones: list[int] = []
        self.words: list[int] = []
        self.before: list[list[tuple[int, float]]] = []
        taken, left_out = math.log(silence_probability), math.log1p(-silence_probability)
        last = [_EDGE]
        for word, variants in enumerate(pronunciations):
            silence = self._add(_SILENCE, _EDGE, [(node, taken) for node in last])
            entries = [(silence, 0.0), *((node, left_out) for node in last)]
            last = []
            for phones in variants:
                arcs = entries
                for phone in phones:
                    arcs = [(self._add(phone, word, arcs), 0.0)]
                last.append(arcs[0][0])
        silence = self._add(_SILENCE, _EDGE, [(node, taken) for node in last])
        self.last = [(silence, 0.0), *((node, left_out) for node in last)]

    def _add(self, phone: int, word: int, before: list[tuple[int, float]]) -> int:
        self.phones.append(phone)
        self.words.append(word)
        self.before.append(before)
        return len(self.phones) - 1


Place = tuple[int, int, int]
"""A phone of the plan with its left and right phone ids; for silence these are :data:`_EDGE`, which matches any."""


def _in_context(
    plan: _Plan,
) -> tuple[list[Place], list[list[tuple[int, float]]], list[tuple[int, float]]]:
    """The plan's phones, one instance for every pair of neighbours; their predecessors; the final ones."""
    lefts = [{plan.phones[node] if node != _EDGE else _SILENCE for node, _ in arcs} for arcs in plan.before]
    rights: list[set[int]] = [set() for _ in plan.phones]
    for node, arcs in enumerate(plan.before):
        for before, _ in arcs:
            if before != _EDGE:
                rights[before].add(plan.phones[node])
    for node, _ in plan.last:
        rights[node].add(_SILENCE)
    places: list[Place] = []
    of_node: list[list[int]] = []
    for node, phone in enumerate(plan.phones):
        contexts = (
            [(_EDGE, _EDGE)]
            if phone == _SILENCE
            else [(left, right) for left in sorted(lefts[node]) for right in sorted(rights[node])]
        )
        of_node.append(list(range(len(places), len(places) + len(contexts))))
        places += [(node, left, right) for left, right in contexts]
    entries = []
    for node, left, _ in places:
        phone = plan.phones[node]
        arcs = []
        for before, weight in plan.before[node]:
            if left not in (_EDGE, plan.phones[before] if before != _EDGE else _SILENCE):
                continue
            found = [_EDGE] if before == _EDGE else of_node[before]
            arcs += [
                (place, weight) for place in found if place == _EDGE or places[place][2] in (_EDGE, phone)
            ]
        entries.append(arcs)
    endings = [
        (place, weight)
        for node, weight in plan.last
        for place in of_node[node]
        if places[place][2] in (_EDGE, _SILENCE)
    ]
    return places, entries, endings
