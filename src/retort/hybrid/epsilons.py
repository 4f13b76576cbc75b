"""Arcs without an input label, where they can go without making the graph larger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retort.hybrid.fst import Fst, join

_PASSES = 20
"""Chains of epsilons are shorter; a circle of them would never end."""


def drop_epsilons(fst: Fst) -> Fst:
    """The same transducer without most of the arcs that disambiguation has left.

    An arc is joined with the one behind it where that is the only one there and has no input label; an arc
    without labels with all behind it where it is the only one that leads there. What a path reads, says and costs
    stays. States that nothing leads to any longer remain, as ends of no path.
    """
    for _ in range(_PASSES):
        shorter = _join_before(_skip_behind(fst))
        if len(shorter.sources) == len(fst.sources) and (shorter.targets == fst.targets).all():
            return shorter
        fst = shorter
    return fst


def _skip_behind(fst: Fst) -> Fst:
    """Arcs into a state that has nothing but one arc without input lead to its end at once."""
    leaving = np.bincount(fst.sources, minlength=fst.states)
    only = np.full(fst.states, -1, np.int64)
    only[fst.sources] = np.arange(len(fst.sources))
    only[(leaving != 1) | np.isfinite(fst.finals)] = -1
    next_arc = only[fst.targets]
    joined = (next_arc >= 0) & (fst.inputs[next_arc] == 0) & (fst.targets[next_arc] != fst.targets)
    joined &= (fst.outputs == 0) | (fst.outputs[next_arc] == 0)
    behind = next_arc[joined]
    outputs, weights, targets = fst.outputs.copy(), fst.weights.copy(), fst.targets.copy()
    outputs[joined] += fst.outputs[behind]
    weights[joined] += fst.weights[behind]
    targets[joined] = fst.targets[behind]
    return _reachable(replace(fst, outputs=outputs, weights=weights, targets=targets))


def _join_before(fst: Fst) -> Fst:
    """The arcs of a state that a single arc without labels leads to begin where that arc begins."""
    entering = np.bincount(fst.targets, minlength=fst.states)
    dropped = (fst.inputs == 0) & (fst.outputs == 0) & (entering[fst.targets] == 1)
    dropped &= (fst.targets != fst.start) & ~np.isfinite(fst.finals[fst.targets])
    gone = np.zeros(fst.states, bool)
    gone[fst.targets[dropped]] = True
    dropped &= ~gone[fst.sources]  # one link of a chain at a time
    moved = np.arange(fst.states, dtype=np.int32)
    moved[fst.targets[dropped]] = fst.sources[dropped]
    added = np.zeros(fst.states, np.float32)
    added[fst.targets[dropped]] = fst.weights[dropped]
    kept = ~dropped
    return Fst(
        fst.start,
        fst.finals,
        moved[fst.sources[kept]],
        fst.inputs[kept],
        fst.outputs[kept],
        fst.weights[kept] + added[fst.sources[kept]],
        fst.targets[kept],
    )


def _reachable(fst: Fst) -> Fst:
    """Without the arcs of states that no arc leads to."""
    while True:
        entered = np.zeros(fst.states, bool)
        entered[fst.targets] = True
        entered[fst.start] = True
        kept = entered[fst.sources]
        if kept.all():
            return fst
        columns = (fst.sources, fst.inputs, fst.outputs, fst.weights, fst.targets)
        fst = Fst(fst.start, fst.finals, *join([column[kept] for column in columns]))
