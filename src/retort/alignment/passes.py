"""Passes over the corpus, shard by shard; jobs can run in any process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.aligner import Transcriber
from retort.alignment.alignment import Alignment, from_path, output_frames, subsample, triphones
from retort.alignment.features import FeatureUtterance, Normalisation, read_shard
from retort.alignment.gmm import Gmms, with_squares
from retort.alignment.mfcc import DIM
from retort.alignment.phones import SILENCE
from retort.alignment.store import Shard, write_shard
from retort.alignment.tree import SenoneTree, TriphoneStatistics
from retort.alignment.utterance import UtteranceHmm
from retort.alignment.viterbi import Path as StatePath
from retort.alignment.viterbi import Task, best_paths
from retort.text.lexicon import Lexicon


@dataclass
class Setting:
    """Settings that are constant in all passes of a stage."""

    lexicon: Lexicon
    tree: SenoneTree
    normalisation: Normalisation
    silence_probability: float
    subsampling: int = 1
    left_out: frozenset[str] = frozenset()


@dataclass
class Job:
    setting: Setting
    shards: list[Path]
    """Shards of cepstra."""
    model: Path = field(default_factory=Path)
    """Model of the previous pass."""
    aligned: list[Path] = field(default_factory=list)
    """Shards of alignments, one for each shard of cepstra."""


class Counted(NamedTuple):
    """Statistics of a pass or a part of it."""

    statistics: NDArray[np.float64]
    """(M, S, 2 D + 1)"""
    visits: NDArray[np.int64]
    """(S,)"""
    log_likelihood: float
    frames: int
    seconds: float
    """Core seconds."""

    def with_more(self, other: Counted) -> Counted:
        return Counted(
            self.statistics + other.statistics,
            self.visits + other.visits,
            self.log_likelihood + other.log_likelihood,
            self.frames + other.frames,
            self.seconds + other.seconds,
        )


def flat_start(job: Job) -> NDArray[np.float64]:
    """Statistics `(S, 2 D + 1)` of utterances divided evenly among the states of silence, their phones, and silence."""
    tree, lexicon = job.setting.tree, job.setting.lexicon
    statistics = np.zeros((tree.count, 2 * DIM + 1))
    for squared, utterance in _utterances(job):
        ids = [tree.phones.ids[phone] for word in utterance.words for phone in lexicon[word][0]]
        silence = tree.phones.ids[SILENCE]
        states = np.array(
            [
                tree.senone(0, phone, 0, state)
                for phone in (silence, *ids, silence)
                for state in range(tree.states)
            ]
        )
        labels = states[np.arange(len(squared)) * len(states) // len(squared)]
        np.add.at(statistics, labels, squared)
    return statistics


def train_pass(job: Job) -> Counted:
    """Align every utterance and accumulate its frames for the Gaussians of its senones."""
    began = time.process_time()
    gmms, more = Gmms.load(job.model)
    tree = job.setting.tree
    statistics = np.zeros((*gmms.weights.shape, 2 * DIM + 1))
    visits = np.zeros(tree.count, np.int64)
    likelihood, frames = 0.0, 0
    for shard in job.shards:
        labels, squared = [], []
        for found in _aligned(job, shard, gmms, more["loops"]):
            own = found.hmm.senones[found.path.states]
            entered = np.flatnonzero(np.diff(found.path.states, prepend=-1))
            visits += np.bincount(own[entered], minlength=tree.count)
            likelihood += found.path.score
            labels.append(own)
            squared.append(found.squared)
        if labels:
            gmms.accumulate(np.concatenate(squared), np.concatenate(labels), statistics)
            frames += sum(map(len, labels))
    return Counted(statistics, visits, likelihood, frames, time.process_time() - began)


def align_pass(job: Job) -> None:
    """Write the alignments of all utterances, shard by shard; existing shards are skipped.

    `gaps` is the mean difference in nats between the best senone of each frame and that of the path, by
    utterance.
    """
    for shard, target in zip(job.shards, job.aligned):
        if target.exists():
            continue
        began = time.process_time()
        gmms, more = Gmms.load(job.model)
        alignments: list[Alignment] = []
        gaps: dict[str, float] = {}
        tree = job.setting.tree
        for found in _aligned(job, shard, gmms, more["loops"]):
            gaps[found.utterance.id] = _gap(gmms, found)
            utterance = found.utterance
            alignments.append(
                from_path(utterance.id, utterance.words, found.hmm, found.path.states, tree.phones.symbols)
            )
        write_shard(target, alignments, tree, gaps=gaps, seconds=time.process_time() - began)


def count_triphones(job: Job) -> TriphoneStatistics:
    """Statistics of the frames of all triphone states in the aligned shards.

    If the frames are longer than those of the alignments, triphones have one state.
    """
    setting = job.setting
    parts = [TriphoneStatistics(np.zeros((0, 4), np.int64), np.zeros((0, 2 * DIM + 1)))]
    for shard, aligned in zip(job.shards, job.aligned):
        alignments = Shard(aligned, setting.tree)
        rows = {name: row for row, name in enumerate(alignments.ids)}
        for squared, utterance in _utterances(Job(setting, [shard])):
            if utterance.id in rows:
                keys = _keys(alignments[rows[utterance.id]], setting.tree, setting.subsampling)
                parts.append(TriphoneStatistics.of(keys, squared))
    return TriphoneStatistics.together(parts)


class _Found(NamedTuple):
    utterance: FeatureUtterance
    squared: NDArray[np.float32]
    """(T, 2 D + 1)"""
    hmm: UtteranceHmm
    path: StatePath
    scores: NDArray[np.float32]
    """(T,): log-likelihood of each frame in the senone of the path."""


def _utterances(job: Job) -> Iterator[tuple[NDArray[np.float32], FeatureUtterance]]:
    setting = job.setting
    for shard in job.shards:
        for utterance in read_shard(shard, setting.normalisation.means, setting.normalisation.deviation):
            if utterance.id not in setting.left_out:
                chosen = output_frames(len(utterance.features), setting.subsampling)
                yield with_squares(utterance.features[chosen]), utterance


def _aligned(job: Job, shard: Path, gmms: Gmms, loops: NDArray[np.float64]) -> Iterator[_Found]:
    setting = job.setting
    transcriber = Transcriber(setting.lexicon, setting.tree, loops, setting.silence_probability)
    utterances = list(_utterances(Job(setting, [shard])))
    hmms = [transcriber.hmm(utterance.words) for _, utterance in utterances]
    tasks = []
    for hmm, (squared, _) in zip(hmms, utterances):
        senones, columns = np.unique(hmm.senones, return_inverse=True)
        tasks.append(Task(hmm.arcs, gmms.log_likelihoods(squared, senones), columns))
    for (squared, utterance), hmm, task, path in zip(utterances, hmms, tasks, best_paths(tasks)):
        if path is not None:
            scores = task.scores[np.arange(len(squared)), task.columns[path.states]]
            yield _Found(utterance, squared, hmm, path, scores)


def _gap(gmms: Gmms, found: _Found) -> float:
    everything = gmms.log_likelihoods(found.squared, np.arange(gmms.weights.shape[1]))
    return float((everything.max(1) - found.scores).mean())


def _keys(alignment: Alignment, tree: SenoneTree, subsampling: int) -> NDArray[np.int64]:
    """`(T, 4)`: left phone, phone, right phone and state of each frame."""
    single = subsampling > 1
    if single:
        alignment = subsample(alignment, subsampling)
    counts = [phone.frames for phone in alignment.phones]
    contexts = np.repeat(np.array(triphones(alignment.phones, tree), np.int64), counts, axis=0)
    # The senones of a monophone are its states in order.
    states = np.zeros(len(contexts), np.int64) if single else alignment.senones % tree.states
    return np.concatenate([contexts, states[:, None]], axis=1)
