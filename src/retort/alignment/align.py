"""Alignment of a corpus from transcripts and features to senones, in stages that are stored and resumed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.alignment.features import Normalisation, Utterance, hours, normalisation
from retort.alignment.gmm import Gmms, single_gaussians
from retort.alignment.mfcc import FRAME_SHIFT
from retort.alignment.passes import Counted, Job, Setting, count_triphones, flat_start, train_pass
from retort.alignment.phones import STATES, UNTRAINED_LOOP, Phones, self_loops
from retort.alignment.stages import (
    Report,
    Work,
    alignment_workers,
    identities,
    is_done,
    shards_of,
    used_words,
    utterances_of,
    without_path,
)
from retort.alignment.store import SHARD_SUFFIX, AlignmentStore, Shard, finish_store
from retort.alignment.tree import SenoneTree, TriphoneStatistics, grow_tree
from retort.common.errors import UserError
from retort.common.locks import one_at_a_time
from retort.common.progress import StageProgress
from retort.config.schema import AlignConfig
from retort.text.lexicon import Lexicon

_VERSION = 1
"""Increase this when the result of a stage changes for the same input."""
_OTHERS_VERSION = 1
"""The same for the result of :func:`align_others`."""
_GROUPS = 128
"""Parts of a pass; their number must not depend on the machine, since sums depend on their order."""
_FEW = 20
"""Below this number of utterances no misfits are detected."""


def align_corpus(
    cuts: Iterable[Any],
    lexicon: Lexicon,
    features: Callable[[Any], NDArray[np.float32]],
    folder: str | Path,
    config: AlignConfig,
    *,
    words: Callable[[str], Sequence[str]] = str.split,
    progress: StageProgress | None = None,
    report: Report | None = None,
) -> AlignmentStore:
    """Align a corpus from a flat start, or open the result of an earlier call.

    Stages: features, monophones from a flat start, tree, tied triphones, alignment. Each is stored in
    `folder` and computed again only if its inputs changed; an interrupted call resumes at its pass or shard.
    An utterance that cannot be aligned is left out, with the reason in `skipped` of the store.

    Args:
        cuts: lhotse cuts with one supervision each; an utterance without a speaker is its own speaker.
        lexicon: pronunciations of the words that `words` returns.
        features: function from a cut to `(T, 13)` float32 every 10 ms before normalisation; raises
            BadUtterance. It must be picklable unless `processes` is 1. Another function, or other audio with
            the same names, is not detected in a folder that has features.
        words: function from a supervision's text to its words, including normalisation.
        progress: called with the stage, the steps done and the total.
        report: called with messages for the user: skipped utterances, likelihoods, cost.

    Raises:
        UserError: no utterance can be aligned, or the folder cannot be written.
    """
    root = Path(folder)
    utterances = utterances_of(cuts, words)
    used = used_words(utterances, lexicon)
    keys = _keys(utterances, used, config)
    with one_at_a_time(root / "lock"):
        if is_done(root / "alignments", keys["alignments"]):
            return AlignmentStore(root / "alignments")
        with alignment_workers(config.processes) as pool:
            work = Work(root, keys, pool, progress, report or (lambda line: None))
            return _Corpus(work, utterances, used, features, config).align()


def _keys(utterances: Sequence[Utterance], lexicon: Lexicon, config: AlignConfig) -> dict[str, str]:
    """Hashes of the inputs of each stage."""
    rests_on = {
        "features": [_VERSION, str(lexicon), identities(utterances)],
        "monophones": [config.silence_probability, config.monophone_passes, config.monophone_mixtures],
        "tree": [config.misfit, config.subsampling, config.states, config.senones, config.minimum_frames],
        "triphones": [config.passes, config.mixtures],
        "alignments": [],
    }
    keys: dict[str, str] = {}
    key = ""
    for stage, parts in rests_on.items():
        key = hashlib.sha256(json.dumps([key, parts]).encode()).hexdigest()
        keys[stage] = key
    return keys


@dataclass
class _Corpus:
    work: Work
    utterances: list[Utterance]
    lexicon: Lexicon
    features: Callable[[Any], NDArray[np.float32]]
    config: AlignConfig

    def align(self) -> AlignmentStore:
        """Run all stages that are not complete."""
        config, phones = self.config, Phones(self.lexicon.phones)
        shards, normal = self.work.features(self.utterances, self.lexicon, self.features)
        self.work.report_left_out(normal.skipped, len(self.utterances), "utterances left out")
        monophones = SenoneTree.monophone(phones, STATES)
        setting = Setting(self.lexicon, monophones, normal, config.silence_probability)
        model, spent = self._train(
            "monophones", setting, shards, config.monophone_passes, config.monophone_mixtures
        )
        first = self.work.align(
            "monophones", setting, shards, model, name="monophone alignment", prefix="aligned-"
        )
        misfits = _misfits([Shard(path, monophones).facts["gaps"] for path in first], config.misfit)
        self.work.report_left_out(misfits, len(self.utterances), "transcripts do not fit their audio")
        setting = replace(setting, subsampling=config.subsampling, left_out=frozenset(misfits))
        setting, statistics = self._grow(setting, shards, first)
        model, more = self._train("triphones", setting, shards, config.passes, config.mixtures, statistics)
        last = self.work.align("alignments", setting, shards, model, name="alignment")
        aligned = {name for path in last for name in Shard(path, setting.tree).ids}
        skipped = normal.skipped | misfits
        skipped |= without_path(self.utterances, aligned, skipped)
        store = finish_store(
            self.work.root / "alignments",
            setting.tree,
            self.lexicon,
            skipped,
            FRAME_SHIFT * config.subsampling,
        )
        spent += more + sum(Shard(path, monophones).facts["seconds"] for path in [*first, *last])
        self._report_cost(store, normal, spent)
        return store

    def _report_cost(self, store: AlignmentStore, normal: Normalisation, seconds: float) -> None:
        total = hours(normal.frames)
        self.work.report(
            f"{len(store)} utterances aligned to {store.tree.count} senones, {len(store.skipped)} left out. "
            f"An hour of speech took {(seconds + normal.seconds) / total:,.0f} s of a core, "
            f"{normal.seconds / total:,.0f} s of them for features; there are {total:.2f} hours"
        )

    def _train(
        self,
        stage: str,
        setting: Setting,
        shards: list[Path],
        passes: int,
        mixtures: int,
        statistics: NDArray[np.float64] | None = None,
    ) -> tuple[Path, float]:
        """Passes of Viterbi training with doubling of the Gaussians; returns the last model and core seconds."""
        folder = self.work.begin(stage)
        jobs = _grouped(setting, shards)
        model, done, seconds = latest_model(folder)
        if model is None:
            if statistics is None:
                statistics = sum(self.work.over("flat start", flat_start, jobs))
            model = folder / "00.safetensors"
            assert statistics is not None
            loops = np.full(setting.tree.count, UNTRAINED_LOOP)
            single_gaussians(statistics).save(model, loops=loops, seconds=np.zeros(1))
        for number in range(done, passes):
            for job in jobs:
                job.model = model
            parts = self.work.over(stage, train_pass, jobs, number * len(jobs), passes * len(jobs))
            counted: Counted = reduce(Counted.with_more, parts)
            seconds += counted.seconds
            gmms = Gmms.load(model)[0].updated(counted.statistics)
            if number in growing_passes(passes, mixtures):
                gmms = gmms.grown(counted.statistics, mixtures)
            loops = self_loops(counted.statistics[..., -1].sum(0).round().astype(np.int64), counted.visits)
            following = folder / f"{number + 1:02d}{SHARD_SUFFIX}"
            gmms.save(following, loops=loops, seconds=np.array([seconds]))
            model.unlink()
            model = following
            self.work.report(
                f"{stage}, pass {number + 1} of {passes}: {counted.log_likelihood / max(counted.frames, 1):.3f} "
                f"nats per frame before it, {gmms.count} Gaussians"
            )
        return model, seconds

    def _grow(
        self, setting: Setting, shards: list[Path], aligned: list[Path]
    ) -> tuple[Setting, NDArray[np.float64]]:
        """The setting with the tree, and the statistics `(S, 2 D + 1)` of its senones."""
        config, phones = self.config, setting.tree.phones
        folder = self.work.begin("tree")
        jobs = _grouped(setting, shards, aligned)
        statistics = TriphoneStatistics.together(list(self.work.over("tree", count_triphones, jobs)))
        if not (folder / "tree.json").exists():
            grow_tree(
                statistics,
                phones,
                config.states,
                senones=config.senones,
                minimum_frames=config.minimum_frames,
            ).save(folder / "tree.json")
        tree = SenoneTree.load(folder / "tree.json")
        sums = np.zeros((tree.count, statistics.sums.shape[1]))
        np.add.at(sums, [tree.senone(*key) for key in statistics.keys.tolist()], statistics.sums)
        return replace(setting, tree=tree), sums


def growing_passes(passes: int, mixtures: int) -> set[int]:
    """The passes, from 0, after which the Gaussians are doubled, evenly spaced."""
    doublings = math.ceil(math.log2(mixtures))
    return {passes * (number + 1) // (doublings + 1) - 1 for number in range(doublings)}


def _misfits(gaps: Sequence[dict[str, float]], limit: float) -> dict[str, str]:
    """Utterances whose gap is an outlier, with the reasons."""
    every = {name: gap for part in gaps for name, gap in part.items()}
    if limit <= 0 or len(every) < _FEW:
        return {}
    values = np.array(list(every.values()))
    middle = float(np.median(values))
    deviation = max(1.4826 * float(np.median(np.abs(values - middle))), 0.05 * middle)
    return {
        name: f"its transcript does not fit its audio ({gap:.1f} nats per frame below the best, the median is {middle:.1f})"
        for name, gap in every.items()
        if gap > middle + limit * deviation
    }


def _grouped(setting: Setting, shards: Sequence[Path], aligned: Sequence[Path] = ()) -> list[Job]:
    size = math.ceil(len(shards) / _GROUPS)
    return [
        Job(setting, list(shards[start : start + size]), aligned=list(aligned[start : start + size]))
        for start in range(0, len(shards), size)
    ]


def latest_model(folder: Path) -> tuple[Path | None, int, float]:
    """The model of the last pass, the number of passes, and the seconds they took."""
    models = sorted(shards_of(folder), key=_number)
    if not models:
        return None, 0, 0.0
    return models[-1], _number(models[-1]), float(Gmms.load(models[-1])[1]["seconds"][0])


def _number(path: Path) -> int:
    return int(path.stem)


def align_others(
    cuts: Iterable[Any],
    lexicon: Lexicon,
    features: Callable[[Any], NDArray[np.float32]],
    aligner: str | Path,
    folder: str | Path,
    *,
    silence_probability: float = 0.5,
    processes: int = 0,
    words: Callable[[str], Sequence[str]] = str.split,
    progress: StageProgress | None = None,
    report: Report | None = None,
) -> AlignmentStore:
    """Align utterances with the HMMs of a finished alignment, without training.

    The mean of each speaker is subtracted from the cepstra, as in training; variances are those of the
    training data. A transcript that does not fit its audio keeps its alignment, so that evaluations on these
    utterances have no selection. The result is stored in `folder` and resumed as in
    :func:`align_corpus`; it is computed again if the aligner changes. Self-loops and
    priors of the store are counts of these utterances, not those of the aligner.

    Args:
        cuts, features, words, progress, report: as in `align_corpus`.
        lexicon: pronunciations with a phone that is not in the tree are left out.
        aligner: complete folder of `align_corpus`.
        folder: folder of these alignments, different from `aligner`.
        silence_probability, processes: as in :class:`retort.config.schema.AlignConfig`.

    Raises:
        UserError: `aligner` has no alignment or lacks its model, no utterance can be aligned, or the folder
            cannot be written.
    """
    first, root = AlignmentStore(aligner), Path(folder)
    if root.resolve() == first.folder.parent.resolve():
        raise UserError("the new alignments would replace those of the aligner", where=folder)
    utterances = utterances_of(cuts, words)
    used = used_words(utterances, _in_phones(lexicon, first.tree.phones.symbols))
    keys = _keys_of_others(first, [_OTHERS_VERSION, str(used), identities(utterances)], silence_probability)
    with one_at_a_time(root / "lock"):
        if is_done(root / "alignments", keys["alignments"]):
            return AlignmentStore(root / "alignments")
        model, deviation = _trained(first)
        with alignment_workers(processes) as pool:
            work = Work(root, keys, pool, progress, report or (lambda line: None))
            shards, normal = work.features(utterances, used, features)
            setting = Setting(
                used,
                first.tree,
                normal._replace(deviation=deviation),
                silence_probability,
                subsampling=round(first.frame_shift / FRAME_SHIFT),
            )
            made = work.align("alignments", setting, shards, model, name="alignment")
        aligned = {name for path in made for name in Shard(path, first.tree).ids}
        skipped = normal.skipped | without_path(utterances, aligned, normal.skipped)
        work.report_left_out(skipped, len(utterances), "utterances have no alignment")
        return finish_store(root / "alignments", first.tree, used, skipped, first.frame_shift)


def _keys_of_others(first: AlignmentStore, inputs: list[object], silence_probability: float) -> dict[str, str]:
    """Keys of both stages; features do not depend on the aligner."""
    path = first.folder / "key"
    learned = path.read_text() if path.exists() else ""
    features = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    alignments = hashlib.sha256(json.dumps([features, learned, silence_probability]).encode()).hexdigest()
    return {"features": features, "alignments": alignments}


def _trained(first: AlignmentStore) -> tuple[Path, NDArray[np.float64]]:
    """The triphone model, and the `(39,)` standard deviations of its training data."""
    root = first.folder.parent
    model, _, _ = latest_model(root / "triphones")
    normal = normalisation(shards_of(root / "features"))
    if model is None or not normal.frames:
        raise UserError(
            f"it contains alignments, but not the {'features' if model else 'Gaussians'} of the aligner",
            where=root,
            remedy="Remove the folder and align the training data again",
        )
    return model, normal.deviation


def _in_phones(lexicon: Lexicon, phones: Sequence[str]) -> Lexicon:
    available = set(phones)
    covered = {word: [each for each in found if available.issuperset(each)] for word, found in lexicon.items()}
    if not any(covered.values()):
        raise UserError(
            f"none of its {len(covered)} words can be spelled in the {len(available)} phones of the aligner",
            where="lexicon",
            remedy="Give the lexicon of the training data",
        )
    return Lexicon(covered)
