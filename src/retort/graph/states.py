"""Context dependency, HMM states and self-loops of HCLG graphs, and the token graph T of TLG graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retort.graph.fst import Fst, join, wheel


class _Phones(Protocol):
    @property
    def ids(self) -> Mapping[str, int]: ...
    @property
    def symbols(self) -> Sequence[str]: ...


class Tree(Protocol):
    """The interface of :class:`retort.alignment.tree.SenoneTree` that graphs use."""

    @property
    def count(self) -> int: ...
    @property
    def states(self) -> int: ...
    @property
    def phones(self) -> _Phones: ...
    def senone(self, left: int, phone: int, right: int, state: int) -> int: ...
    def save(self, path: Path) -> None: ...


@dataclass(frozen=True)
class SenoneArcs:
    """A transducer whose input labels are states of phones instead of senones, since phones may share senones.

    Attributes:
        fst: label i + 1 is row i of `emissions`; greater labels are disambiguation symbols.
        emissions: `(E, 3)` distinct phone, state, senone.
    """

    fst: Fst
    emissions: NDArray[np.int32]

    def disambiguated(self) -> Fst:
        """Remove disambiguation symbols; input labels become senone + 1."""
        senones = np.concatenate(([0], self.emissions[:, 2] + 1))
        inputs = senones[np.where(self.fst.inputs < len(senones), self.fst.inputs, 0)].astype(np.int32)
        return replace(self.fst, inputs=inputs)


def add_context(phones: Any, symbols: Sequence[int]) -> tuple[Any, list[list[int]]]:
    """Compose phones (id + 1) with their contexts: C o LG.

    Returns:
        An OpenFst transducer, and its input labels: left, phone and right, 0 for outside the utterance;
        anything but three non-negative labels is a disambiguation symbol.
    """
    found, windows = wheel("kaldifst").compose_context(list(symbols), 3, 1, phones)
    return found, windows


def add_states(fst: Fst, windows: Sequence[Sequence[int]], tree: Tree) -> SenoneArcs:
    """Replace every triphone arc by one arc per state: H o CLG without self-loops.

    Outside the utterance the context is silence.
    """
    numbers: dict[tuple[int, int, int], int] = {}
    states = np.zeros((len(windows), tree.states), np.int32)
    for number, window in enumerate(windows):
        if len(window) == 3:
            left, phone, right = (max(label - 1, 0) for label in window)
            for state in range(tree.states):
                emission = (phone, state, tree.senone(left, phone, right, state))
                states[number, state] = numbers.setdefault(emission, len(numbers)) + 1
    emissions = np.array(list(numbers), np.int32).reshape(-1, 3)
    phone_arcs = states[fst.inputs, 0] > 0
    other = ~phone_arcs
    labels = np.where(fst.inputs[other] > 0, fst.inputs[other] + len(emissions), 0)
    parts = [(fst.sources[other], labels, fst.outputs[other], fst.weights[other], fst.targets[other])]
    count = int(phone_arcs.sum())
    at, outputs, weights = fst.sources[phone_arcs], fst.outputs[phone_arcs], fst.weights[phone_arcs]
    for state in range(tree.states):
        last = state == tree.states - 1
        to = (
            fst.targets[phone_arcs] if last else fst.states + state * count + np.arange(count, dtype=np.int32)
        )
        parts.append((at, states[fst.inputs[phone_arcs], state], outputs, weights, to))
        at, outputs, weights = to, np.zeros(count, np.int32), np.zeros(count, np.float32)
    finals = np.concatenate((fst.finals, np.full(count * (tree.states - 1), np.inf, np.float32)))
    return SenoneArcs(Fst(fst.start, finals, *join(*parts)), emissions)


def add_self_loops(fst: Fst, self_loops: NDArray[np.floating]) -> Fst:
    """Add self-loops to the states that senone arcs enter.

    A visit of n frames costs n - 1 loops and one exit, which the entering arc pays. A state with several
    input labels gets an additional state before it for each senone, so that every loop repeats the senone
    that was entered.

    Args:
        fst: input label senone + 1.
        self_loops: `(S,)` probabilities in (0, 1).
    """
    stay = -np.log(self_loops).astype(np.float32)
    leave = -np.log1p(-self_loops).astype(np.float32)
    emitting = fst.inputs > 0
    weights = fst.weights.copy()
    weights[emitting] += leave[fst.inputs[emitting] - 1]
    # Entries: pairs of a state and the label that enters it; 0 for epsilon or the start.
    span = len(self_loops) + 1
    entries = np.unique(
        np.append(fst.targets.astype(np.int64) * span + fst.inputs, np.int64(fst.start) * span)
    )
    state, label = np.divmod(entries, span)
    alone = np.bincount(state, minlength=fst.states)[state] == 1
    own = np.where(alone, state, -1)
    split = ~alone & (label > 0)
    own[split] = fst.states + np.arange(split.sum())
    targets = fst.targets.copy()
    where = np.searchsorted(entries, fst.targets[emitting].astype(np.int64) * span + fst.inputs[emitting])
    targets[emitting] = own[where]
    looping = label > 0
    finals = np.concatenate((fst.finals, np.full(split.sum(), np.inf, np.float32)))
    return Fst(
        fst.start,
        finals,
        *join(
            (fst.sources, fst.inputs, fst.outputs, weights, targets),
            (own[looping], label[looping], 0, stay[label[looping] - 1], own[looping]),
            (own[split], 0, 0, 0.0, state[split]),
        ),
    )


def token_fst(columns: Sequence[int], blank: int) -> Fst:
    """Map frames to tokens (T); both labels are column + 1.

    There is an arc for every pair of different tokens, so that equal tokens in a row need a blank between
    them.

    Args:
        columns: columns of the tokens in the CTC output, each once, without the blank.
    """
    labels = np.asarray(columns) + 1
    states = 1 + np.arange(len(labels))
    before, after = np.nonzero(~np.eye(len(labels), dtype=bool))
    arcs = join(
        (0, blank + 1, 0, 0.0, np.zeros(1)),
        (0, labels, labels, 0.0, states),
        (states, labels, 0, 0.0, states),
        (states, blank + 1, 0, 0.0, 0),
        (states[before], labels[after], labels[after], 0.0, states[after]),
    )
    return Fst(0, np.zeros(1 + len(labels), np.float32), *arcs)
