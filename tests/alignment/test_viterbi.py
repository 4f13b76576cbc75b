"""The best path against the enumeration of all paths; the HMM of a transcript against what may be recognised."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_systems import LEXICON, PHONES, random_tree

from retort.alignment.aligner import Transcriber
from retort.alignment.tree import SenoneTree
from retort.alignment.utterance import UtteranceHmm, utterance_hmm
from retort.alignment.viterbi import Arcs, Task, batches, best_paths

WORDS = st.lists(st.sampled_from(LEXICON.words), min_size=1, max_size=2)


def dense(arcs: Arcs) -> np.ndarray:
    """`(N, N)`: log weight from row to column, every arc looked up by itself."""
    count = len(arcs.loops)
    weights = np.full((count, count), -np.inf)
    for state in range(count):
        weights[state, state] = arcs.loops[state]
        if state:
            weights[state - 1, state] = arcs.steps[state]
    for target, sources, values in zip(arcs.targets, arcs.sources, arcs.weights):
        for source, value in zip(sources, values):
            if np.isfinite(value):
                assert not np.isfinite(weights[source, target]), "two arcs between the same states"
                weights[source, target] = value
    return weights


def every_path(arcs: Arcs, scores: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """The best of all state sequences, one by one."""
    weights = dense(arcs)
    frames, count = scores.shape
    best = (-np.inf, ())
    for states in itertools.product(range(count), repeat=frames):
        score = arcs.starts[states[0]] + arcs.ends[states[-1]] + scores[np.arange(frames), states].sum()
        score += sum(weights[pair] for pair in itertools.pairwise(states))
        if score > best[0]:
            best = (score, states)
    return best


def random_arcs(seed: int, count: int) -> Arcs:
    draw = np.random.default_rng(seed)
    steps = np.where(draw.random(count) < 0.7, draw.normal(size=count), -np.inf)
    steps[0] = -np.inf
    targets = np.flatnonzero(draw.random(count) < 0.6)
    # A source that is neither the state itself nor the one before.
    sources = (targets[:, None] + draw.integers(1, count - 1, (len(targets), 1))) % count
    weights = np.where(draw.random(sources.shape) < 0.8, draw.normal(size=sources.shape), -np.inf)
    ends = np.where(draw.random(count) < 0.6, draw.normal(size=count), -np.inf)
    starts = np.where(draw.random(count) < 0.6, draw.normal(size=count), -np.inf)
    return Arcs(draw.normal(size=count), steps, targets, sources, weights, starts, ends)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(3, 4), st.integers(1, 4)), min_size=1, max_size=3)
)
def test_the_best_path_is_the_best_of_all(sizes: list[tuple[int, int, int]]) -> None:
    tasks = []
    for seed, count, frames in sizes:
        scores = np.random.default_rng(seed).normal(size=(frames, count)) * 2
        tasks.append(Task(random_arcs(seed, count), scores, np.arange(count)))
    for task, path in zip(tasks, best_paths(tasks)):
        score, states = every_path(task.arcs, task.scores)
        if not np.isfinite(score):
            assert path is None
            continue
        assert path is not None
        assert path.score == pytest.approx(score, abs=1e-4)
        assert tuple(path.states) == states


def test_states_may_share_a_column() -> None:
    arcs = random_arcs(4, 4)
    scores = np.random.default_rng(0).normal(size=(4, 2))
    columns = np.array([1, 0, 0, 1])
    (path,) = best_paths([Task(arcs, scores, columns)])
    assert path is not None
    assert path.score == pytest.approx(every_path(arcs, scores[:, columns])[0], abs=1e-4)


def test_company_changes_nothing() -> None:
    transcriber = Transcriber(LEXICON, random_tree(0, 3, 30), np.full(30, 0.6), 0.5)
    draw = np.random.default_rng(0)
    tasks = []
    for length in (30, 55, 42):
        hmm = transcriber.hmm(["ca", "bad", "ca"])
        tasks.append(Task(hmm.arcs, draw.normal(size=(length, 30)).astype(np.float32), hmm.senones))
    together = best_paths(tasks)
    for task, joint in zip(tasks, together):
        (alone,) = best_paths([task])
        assert alone is not None
        assert joint is not None
        assert joint.score == alone.score
        np.testing.assert_array_equal(joint.states, alone.states)


def test_too_few_frames_have_no_path() -> None:
    hmm = utterance_hmm([[(1, 2)]], SenoneTree.monophone(PHONES, 3), np.full(15, 0.5), 0.5)
    paths = best_paths(
        [Task(hmm.arcs, np.zeros((frames, 15), np.float32), hmm.senones) for frames in (0, 5, 6)]
    )
    assert [path is None for path in paths] == [True, True, False]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 3000)), max_size=30))
def test_batches_hold_every_utterance_once(sizes: list[tuple[int, int]]) -> None:
    found = list(batches(sizes))
    assert sorted(itertools.chain(*found)) == list(range(len(sizes)))
    for batch in found:
        cells = sum(sizes[each][0] for each in batch) * max(sizes[each][1] for each in batch)
        assert len(batch) == 1 or cells <= 4_000_000


def output(words: list[str]) -> dict[tuple[int, ...], float]:
    """Every phone sequence that a transcript allows, and the log weight of its silences; p = 0.3."""
    found = {}
    for ways in itertools.product(*(LEXICON[word] for word in words)):
        for silences in itertools.product((False, True), repeat=len(words) + 1):
            phones: list[int] = []
            for silence, way in zip(silences, [*ways, ()]):
                phones += [0] * silence + [PHONES.ids[phone] for phone in way]
            found[tuple(phones)] = float(np.log(np.where(silences, 0.3, 0.7)).sum())
    return found


def walks(hmm: UtteranceHmm) -> list[tuple[list[int], float]]:
    """Every way through the HMM without loops, with its weight."""
    weights = dense(hmm.arcs)
    np.fill_diagonal(weights, -np.inf)
    complete: list[tuple[list[int], float]] = []
    open_ = [([state], hmm.arcs.starts[state]) for state in np.flatnonzero(np.isfinite(hmm.arcs.starts))]
    while open_:
        states, weight = open_.pop()
        if np.isfinite(hmm.arcs.ends[states[-1]]):
            complete.append((states, weight + hmm.arcs.ends[states[-1]]))
        for target in np.flatnonzero(np.isfinite(weights[states[-1]])):
            open_.append(([*states, int(target)], weight + weights[states[-1], target]))
    return complete


@settings(max_examples=12)
@given(WORDS, st.integers(0, 5), st.sampled_from([1, 2]))
def test_the_hmm_says_what_the_transcript_allows(words: list[str], seed: int, states: int) -> None:
    tree = random_tree(seed, states, 20)
    loops = np.random.default_rng(seed).uniform(0.2, 0.9, tree.count)
    hmm = Transcriber(LEXICON, tree, loops, 0.3).hmm(words)
    expected = output(words)
    met: dict[tuple[int, ...], int] = {}
    for path, weight in walks(hmm):
        phones = hmm.phones[hmm.places[path[::states]]].tolist()
        around = [0, *phones, 0]
        senones = [
            tree.senone(around[place], phone, around[place + 2], state)
            for place, phone in enumerate(phones)
            for state in range(states)
        ]
        assert hmm.senones[path].tolist() == senones
        leaving = np.log(1 - loops[senones]).sum()
        assert weight == pytest.approx(expected[tuple(phones)] + leaving)
        owners = [word for word in hmm.words[hmm.places[path[::states]]].tolist() if word >= 0]
        assert list(dict.fromkeys(owners)) == list(range(len(words)))
        met[tuple(phones)] = met.get(tuple(phones), 0) + 1
    assert met.keys() == expected.keys()
    # One way through the HMM for each way to say the words.
    assert sum(met.values()) == 2 ** (len(words) + 1) * np.prod([len(LEXICON[word]) for word in words])
