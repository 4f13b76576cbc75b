"""Exact Viterbi search through the HMMs of transcripts, without a beam, for many utterances at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CELLS = 4_000_000
"""Maximum of states times frames of a batch."""


@dataclass
class Arcs:
    """Arcs between the states 0 to N - 1 of an HMM, with log weights.

    A state is entered from itself and from the state with the previous number (most states are inside a
    chain); the `targets` are also entered from further `sources`.
    """

    loops: NDArray[np.float64]
    """(N,)"""
    steps: NDArray[np.float64]
    """(N,): from the previous state, -inf if there is no such arc."""
    targets: NDArray[np.int64]
    """(E,)"""
    sources: NDArray[np.int64]
    """(E, K)"""
    weights: NDArray[np.float64]
    """(E, K), -inf if a target has fewer than K further sources."""
    starts: NDArray[np.float64]
    """(N,): initial log-probabilities."""
    ends: NDArray[np.float64]
    """(N,): log-probabilities of ending after each state."""


class Task(NamedTuple):
    arcs: Arcs
    scores: NDArray[np.floating]
    """(T, C): log-likelihood of each frame in each column."""
    columns: NDArray[np.integer]
    """(N,): the column of each state."""


class Path(NamedTuple):
    states: NDArray[np.int64]
    """(T,)"""
    score: float
    """Natural logarithm, including the weights of all arcs, start and end."""


def batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Batches of indices of utterances with similar lengths, limited in memory, from (states, frames) of each."""
    batch: list[int] = []
    states = 0
    for index in sorted(range(len(sizes)), key=lambda each: -sizes[each][1]):
        if batch and (states + sizes[index][0]) * sizes[batch[0]][1] > _CELLS:
            yield batch
            batch, states = [], 0
        batch.append(index)
        states += sizes[index][0]
    if batch:
        yield batch


def best_paths(tasks: Sequence[Task]) -> list[Path | None]:
    """The most probable state sequence of each utterance; None if no path has its number of frames.

    The HMMs of a batch are searched as one HMM with separate components, so that each frame needs few vector
    operations; every utterance ends at its own last frame.
    """
    found: list[Path | None] = [None] * len(tasks)
    sizes = [(len(task.columns), len(task.scores)) for task in tasks]
    for batch in batches(sizes):
        chosen = [index for index in batch if sizes[index][1] > 0]
        for index, path in zip(chosen, _search([tasks[index] for index in chosen])):
            found[index] = path
    return found


def _search(tasks: Sequence[Task]) -> Iterable[Path | None]:
    if not tasks:
        return []
    joint = _joined([task.arcs for task in tasks])
    lengths = np.array([len(task.scores) for task in tasks])
    offsets = np.cumsum([0] + [len(task.columns) for task in tasks])
    columns = np.cumsum([0] + [task.scores.shape[1] for task in tasks])
    scores = np.zeros((lengths.max(), columns[-1]), np.float32)
    for task, first, last in zip(tasks, columns, columns[1:]):
        scores[: len(task.scores), first:last] = task.scores
    of_state = np.concatenate([task.columns + first for task, first in zip(tasks, columns)])
    back, finals, totals = _forward(joint, scores, of_state, lengths, offsets)
    states = _trace(joint, back, finals, lengths)
    return [
        Path(states[: lengths[index], index] - offsets[index], float(totals[index]))
        if np.isfinite(totals[index])
        else None
        for index in range(len(tasks))
    ]


def _joined(parts: Sequence[Arcs]) -> Arcs:
    """Arcs of several HMMs as those of one with separate components."""
    offsets = np.cumsum([0] + [len(arcs.loops) for arcs in parts])
    width = max(arcs.sources.shape[1] for arcs in parts)
    sources, weights = [], []
    for arcs, offset in zip(parts, offsets):
        gap = ((0, 0), (0, width - arcs.sources.shape[1]))
        sources.append(np.pad(arcs.sources + offset, gap))
        weights.append(np.pad(arcs.weights, gap, constant_values=-np.inf))
    return Arcs(
        loops=np.concatenate([arcs.loops for arcs in parts]),
        steps=np.concatenate([arcs.steps for arcs in parts]),
        targets=np.concatenate([arcs.targets + offset for arcs, offset in zip(parts, offsets)]),
        sources=np.concatenate(sources),
        weights=np.concatenate(weights),
        starts=np.concatenate([arcs.starts for arcs in parts]),
        ends=np.concatenate([arcs.ends for arcs in parts]),
    )


def _forward(
    arcs: Arcs,
    scores: NDArray[np.float32],
    columns: NDArray[np.integer],
    lengths: NDArray[np.integer],
    offsets: NDArray[np.integer],
) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.float64]]:
    """Back pointers `(T, N)`: 0 self-loop, 1 previous state, 2 + k source k; last states and scores."""
    frames, count = len(scores), len(arcs.loops)
    back = np.zeros((frames, count), np.int8)
    finals, totals = np.zeros(len(lengths), np.int64), np.full(len(lengths), -np.inf)
    rows = np.arange(len(arcs.targets))
    further = arcs.sources.size > 0
    score = arcs.starts + scores[0, columns]
    best, move = np.empty(count), np.full(count, -np.inf)
    for frame in range(frames):
        if frame:
            np.add(score, arcs.loops, out=best)
            np.add(score[:-1], arcs.steps[1:], out=move[1:])
            np.greater(move, best, out=back[frame], casting="unsafe")
            np.maximum(best, move, out=best)
            if further:
                candidates = score[arcs.sources] + arcs.weights
                choice = candidates.argmax(1)
                value = candidates[rows, choice]
                better = value > best[arcs.targets]
                best[arcs.targets[better]] = value[better]
                back[frame, arcs.targets[better]] = choice[better] + 2
            np.add(best, scores[frame, columns], out=score)
        for index in np.flatnonzero(lengths == frame + 1):
            ending = (
                score[offsets[index] : offsets[index + 1]] + arcs.ends[offsets[index] : offsets[index + 1]]
            )
            finals[index] = offsets[index] + ending.argmax()
            totals[index] = ending.max()
    return back, finals, totals


def _trace(
    arcs: Arcs, back: NDArray[np.int8], finals: NDArray[np.int64], lengths: NDArray[np.integer]
) -> NDArray[np.int64]:
    """States `(T, utterances)` of the joint HMM; after the end of an utterance its last state."""
    row = np.zeros(len(arcs.loops), np.int64)
    row[arcs.targets] = np.arange(len(arcs.targets))
    states = np.empty((len(back), len(finals)), np.int64)
    state = finals.copy()
    for frame in range(len(back) - 1, -1, -1):
        states[frame] = state
        code = np.where(frame < lengths, back[frame, state], 0)
        state = state - (code == 1)
        jumps = np.flatnonzero(code > 1)
        if len(jumps):
            state[jumps] = arcs.sources[row[state[jumps]], code[jumps] - 2]
    return states
