"""Stages of an alignment; each is stored in its own folder and reused while its inputs stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.alignment.features import Normalisation, ShardJob, Utterance, divide, make_shard, normalisation
from retort.alignment.passes import Job, Setting, align_pass
from retort.alignment.store import SHARD_SUFFIX, reasons
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.progress import StageProgress
from retort.common.workers import Workers, workers
from retort.text.lexicon import Lexicon

Report = Callable[[str], None]


def alignment_workers(processes: int) -> AbstractContextManager[Workers]:
    """The processes of an alignment; 0 uses all cores."""
    remedy = "If memory was exhausted, set fewer `processes`; run again, and the alignment is resumed"
    return workers(processes, "the alignment", remedy)


def utterances_of(cuts: Iterable[Any], words: Callable[[str], Sequence[str]]) -> list[Utterance]:
    """Utterances of lhotse cuts with one supervision each, and their words."""
    return [
        Utterance(cut.id, cut.supervisions[0].speaker or "", tuple(words(cut.supervisions[0].text or "")), cut)
        for cut in cuts
    ]


def used_words(utterances: Sequence[Utterance], lexicon: Lexicon) -> Lexicon:
    """The part of the lexicon that occurs in the utterances, sorted, so that other entries do not matter.

    Raises:
        UserError: none of their words is in the lexicon.
    """
    words = sorted({word for each in utterances for word in each.words if word in lexicon})
    if not words:
        raise UserError(
            f"none of the words of {len(utterances)} utterances is in the lexicon",
            remedy="Check that text and lexicon have the same language and case",
        )
    return lexicon.only(words)


def identities(utterances: Iterable[Utterance]) -> list[tuple[Any, ...]]:
    """Descriptions of utterances for hashing, as JSON values."""
    return [(each.id, each.speaker, each.words, *_place(each.cut)) for each in utterances]


def _place(cut: Any) -> tuple[Any, ...]:
    return getattr(cut, "recording_id", ""), getattr(cut, "start", 0.0), getattr(cut, "duration", 0.0)


def is_begun(folder: Path, key: str) -> bool:
    """Whether a stage was started with this key."""
    return (folder / "key").exists() and (folder / "key").read_text() == key


def is_done(folder: Path, key: str) -> bool:
    """Whether the folder contains the store for this key."""
    return is_begun(folder, key) and (folder / "store.json").exists()


def shards_of(folder: Path) -> list[Path]:
    """Existing shards in their order."""
    return sorted(path for path in folder.glob(f"*{SHARD_SUFFIX}") if path.stem.isdigit())


@dataclass
class Work:
    """Folders, processes and reporting of the stages.

    Attributes:
        keys: hash of each stage's inputs.
    """

    root: Path
    keys: dict[str, str]
    pool: Workers
    progress: StageProgress | None
    report: Report

    def begin(self, stage: str) -> Path:
        """The folder of a stage; it is emptied if it was started with other data or settings."""
        folder = self.root / stage
        if not is_begun(folder, self.keys[stage]):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_whole(folder / "key", self.keys[stage])
        return folder

    def over(
        self, stage: str, work: Callable[[Any], Any], jobs: Sequence[Any], done: int = 0, total: int = 0
    ) -> Iterator[Any]:
        """Run jobs and report progress; `done` of `total` were completed before."""
        for count, result in enumerate(self.pool.map(work, jobs), 1):
            if self.progress is not None:
                self.progress(stage, done + count, total or len(jobs))
            yield result

    def features(
        self, utterances: Sequence[Utterance], lexicon: Lexicon, features: Callable[[Any], NDArray[np.float32]]
    ) -> tuple[list[Path], Normalisation]:
        """Compute shards of cepstra and their normalisation.

        Raises:
            UserError: no utterance can be aligned.
        """
        folder = self.begin("features")
        parts = divide(utterances, lambda cut: float(cut.duration))
        shards = [folder / f"{number:05d}{SHARD_SUFFIX}" for number in range(len(parts))]
        jobs = [ShardJob(path, part, lexicon, features) for path, part in zip(shards, parts)]
        for _ in self.over("features", make_shard, jobs):
            pass
        normal = normalisation(shards)
        if not normal.frames:
            raise UserError(f"no utterance can be aligned{reasons(normal.skipped)}", where=self.root)
        return shards, normal

    def align(
        self,
        stage: str,
        setting: Setting,
        shards: Sequence[Path],
        model: Path,
        *,
        name: str = "",
        prefix: str = "",
    ) -> list[Path]:
        """Align each shard of cepstra to a shard of alignments.

        Args:
            name: name of the stage in progress reports, by default `stage`.
            prefix: prefix of the file names of the shards.
        """
        folder = self.begin(stage)
        targets = [folder / f"{prefix}{number:05d}{SHARD_SUFFIX}" for number in range(len(shards))]
        jobs = [Job(setting, [shard], model, [target]) for shard, target in zip(shards, targets)]
        for _ in self.over(name or stage, align_pass, jobs):
            pass
        return targets

    def report_left_out(self, skipped: dict[str, str], all_of_them: int, what: str) -> None:
        """Report how many utterances are left out, with the reasons of a few."""
        if skipped:
            self.report(f"{len(skipped)} of {all_of_them} {what}{reasons(skipped)}")


def without_path(utterances: Iterable[Utterance], aligned: set[str], skipped: dict[str, str]) -> dict[str, str]:
    """Reasons for utterances that are neither aligned nor skipped."""
    lost = {each.id for each in utterances} - aligned - skipped.keys()
    return {name: "no path through its phones has this number of frames" for name in sorted(lost)}
