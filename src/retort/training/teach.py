"""`retort teach`: computes the teachers' outputs for the training text once and stores them for all runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from lhotse.cut import Cut

from retort.common.errors import BadUtterance, UserError
from retort.common.locks import one_at_a_time
from retort.common.progress import StageProgress
from retort.common.workers import workers
from retort.config.schema import NormaliserConfig, Recipe
from retort.corpora.features import load_samples
from retort.corpora.open_cuts import find_data, open_cuts
from retort.corpora.shards import is_shards
from retort.engine.loop import Report
from retort.teachers import Estimate, StoredTeacher, Teacher, fill, open_store, open_teacher_model
from retort.teachers.whisper import SamplesOf, text_with_id
from retort.text.normalise import Normaliser
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import Tokenizer
from retort.training.prerequisites import train_teachers
from retort.training.recogniser_teacher import LoadedRecogniser
from retort.training.sharded import ShardedCuts, open_shards

Announce = Callable[[str, Path, Estimate], None]
"""Called with a teacher's name, the folder of its store and the estimated cost of filling it."""


@dataclass(frozen=True)
class Taught:
    """One teacher after `retort teach`.

    Attributes:
        name: name in the recipe.
        store: store with all outputs so far.
        read: number of texts that this process has computed.
        missing: number of texts of the recipe that other processes must still compute.
    """

    name: str
    store: StoredTeacher
    read: int
    missing: int


def store_root(root: Path) -> Path:
    """Folder of the teacher stores that experiments in `root` share."""
    return root / "cache" / "teachers"


def teach(
    recipe: Recipe,
    root: Path,
    progress: StageProgress,
    announce: Announce,
    report: Report = lambda step, values: None,
    place: tuple[int, int, int] | None = None,
) -> list[Taught]:
    """Fill the stores of the teachers of the recipe's rows; only missing texts are computed.

    Soft labels are over the student's tokens, so that the experiment must already have its tokenizer.

    Under `torchrun` (RANK, WORLD_SIZE and LOCAL_RANK in the environment) every process computes its own share; the
    processes need not communicate, only share the folder.

    Args:
        root: folder of the experiments.
        report: called during the training of a missing teacher.
        place: index of this process, number of processes, and index on its machine; by default those of `torchrun`.

    Raises:
        UserError: there is no row or no training text, the student is hybrid, or as :func:`retort.teachers.fill`.
    """
    if recipe.student.kind == "hybrid":
        raise UserError(
            "the teacher inputs of a hybrid student come from its alignments",
            where=recipe.name,
            remedy="Run `retort train`, which aligns the data and then fills the stores",
        )
    names = taught_by(recipe)
    if not names:
        raise UserError("no row of distill names a teacher", where=recipe.name, remedy="Add rows to distill")
    train_teachers(recipe, root, progress, report)
    torch.set_num_threads(recipe.training.threads)
    rank, world, local = place or _torchrun_place()
    device = _device(recipe, local)
    made = root / recipe.name / "tokenizer"
    tokenizer = open_tokenizer(made) if made.exists() else None
    audio = [name for name in names if recipe.teachers[name].kind in ("whisper", "recogniser")]
    if audio:
        raise UserError(
            f"teacher {audio[0]} needs the audio at every speed",
            where=recipe.name,
            remedy="Run `retort train`, which prepares the audio and then fills the store",
        )
    texts = training_texts(recipe)
    done = []
    for name in names:
        teacher = open_teacher_model(recipe.teachers[name], device, tokenizer)
        store = open_store(teacher, store_root(root))
        read = _fill(name, store, teacher, texts, rank, world, progress, announce)
        done.append(Taught(name, store, read, len(store.missing(texts))))
    return done


def taught_by(recipe: Recipe) -> list[str]:
    """Names of the teachers of the recipe's rows, sorted."""
    return sorted({row.teacher for row in recipe.distill if row.teacher})


def training_texts(recipe: Recipe) -> list[str]:
    """The distinct normalised texts of `data.train`, without opening its audio.

    Raises:
        UserError: there is no training data, or no text in it.
    """
    if not recipe.data.train:
        raise UserError("data.train is empty", where=recipe.name, remedy="Set it to a manifest or a Kaldi folder")
    low, high = recipe.batches.minimum_seconds, recipe.batches.maximum_seconds

    def transcripts() -> Iterator[str]:
        for source in recipe.data.train_sources:
            if is_shards(source):
                yield from open_shards(source, recipe).transcripts()
                continue
            for cut in open_cuts(find_data(source)).cuts:
                if low <= cut.duration <= high:
                    yield cut.supervisions[0].text or ""

    texts = distinct_texts(transcripts(), recipe.normaliser)
    if not texts:
        raise UserError("no training utterance has a text within the recipe's range", where=recipe.name)
    return texts


def normalised_texts(cuts: Iterable[Cut] | ShardedCuts, config: NormaliserConfig) -> list[str]:
    """Input texts of a teacher for these cuts: distinct normalised texts without empty ones."""
    if isinstance(cuts, ShardedCuts):
        return distinct_texts(cuts.transcripts(), config)
    return distinct_texts((cut.supervisions[0].text or "" for cut in cuts), config)


def distinct_texts(transcripts: Iterable[str], config: NormaliserConfig) -> list[str]:
    """The distinct normalised texts in order, without empty ones."""
    normalise = Normaliser(config)
    return [text for text in dict.fromkeys(map(normalise, transcripts)) if text]


def texts_with_ids(cuts: Iterable[Cut], config: NormaliserConfig) -> list[str]:
    """Inputs of a teacher with audio for these cuts, without empty texts."""
    normalise = Normaliser(config)
    texts = ((cut.id, normalise(cut.supervisions[0].text or "")) for cut in cuts)
    return [text_with_id(utterance, text) for utterance, text in texts if text]


class CutSamples:
    """The audio of cuts by their ids.

    Args:
        cuts: cuts at all speeds; those in shards have no audio here.
    """

    def __init__(self, cuts: Iterable[Cut] | ShardedCuts) -> None:
        self._cuts = {} if isinstance(cuts, ShardedCuts) else {cut.id: cut for cut in cuts}

    def __call__(self, utterance: str, sampling_rate: int) -> np.ndarray:
        """`(N,)` float32.

        Raises:
            BadUtterance: the cut does not exist, or its audio cannot be read.
        """
        if utterance not in self._cuts:
            raise BadUtterance("no audio of this utterance", where=utterance)
        return load_samples(self._cuts[utterance], sampling_rate)


def complete_stores(
    recipe: Recipe,
    teachers: Mapping[str, Teacher],
    texts_of: Callable[[str], list[str]],
    progress: StageProgress,
    accelerator: Accelerator,
    tokenizer_of: Callable[[str], Tokenizer | None],
    samples_of: SamplesOf | None = None,
) -> None:
    """Fill the stores of all stored teachers, every process its share, and wait for all processes.

    Args:
        texts_of: returns the distinct texts of training for a teacher's name.
        tokenizer_of: returns the tokenizer of the soft labels for a teacher's name.
        samples_of: returns the audio, for teachers that need it.

    Raises:
        UserError: as :func:`retort.teachers.fill`.
    """
    stored = {name: each for name, each in teachers.items() if isinstance(each, StoredTeacher)}
    if not stored:
        return
    for name, store in stored.items():
        texts = texts_of(name)
        if not store.missing(texts):
            continue
        rank, world = accelerator.process_index, accelerator.num_processes
        # The processes of one run share the work; of several runs one works while the others wait.
        with one_at_a_time(store.folder / "lock") if world == 1 else nullcontext():
            store.refresh()
            if store.missing(texts):
                teacher = open_teacher_model(
                    recipe.teachers[name],
                    accelerator.device,
                    tokenizer_of(name),
                    samples_of,
                    LoadedRecogniser,
                )
                _fill(name, store, teacher, texts, rank, world, progress, None)
    accelerator.wait_for_everyone()
    for store in stored.values():
        store.refresh()


def _fill(
    name: str,
    store: StoredTeacher,
    teacher: Teacher,
    texts: list[str],
    rank: int,
    world: int,
    progress: StageProgress,
    announce: Announce | None,
) -> int:
    return fill(
        store,
        teacher,
        texts,
        rank=rank,
        world=world,
        progress=lambda done, total: progress(f"teacher {name}", done, total),
        announce=None if announce is None else lambda estimate: announce(name, store.folder, estimate),
    )


def teach_in_processes(
    recipe: Recipe, root: Path, part: tuple[int, int], processes: int, progress: StageProgress, report: Report
) -> None:
    """Fill the stores for one part of the texts by several processes of this machine.

    The stores contain the same outputs as after :func:`teach` in one process. Processes and machines share the folder.

    Args:
        part: number of this part, counted from 1, and number of parts.

    Raises:
        UserError: as :func:`teach`, or a process was killed.
    """
    train_teachers(recipe, root, progress, report)
    places = [((part[0] - 1) * processes + local, part[1] * processes, local) for local in range(processes)]
    with workers(processes, "retort teach", "Use fewer --workers") as pool:
        for done, _ in enumerate(pool.map(partial(_teach_place, recipe, root), places), 1):
            progress("teachers, processes", done, processes)


def _teach_place(recipe: Recipe, root: Path, place: tuple[int, int, int]) -> None:
    teach(recipe, root, lambda *_: None, lambda *_: None, place=place)


def _torchrun_place() -> tuple[int, int, int]:
    """Index of this process, number of processes, and index on its machine, from the environment."""
    try:
        rank, world, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
    except ValueError:
        raise UserError(
            "RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers", where="environment"
        ) from None
    if not 0 <= rank < world:
        raise UserError(f"RANK is {rank} of WORLD_SIZE {world}", where="environment")
    return rank, world, local


def _device(recipe: Recipe, local: int) -> torch.device:
    if recipe.training.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local % torch.cuda.device_count())
