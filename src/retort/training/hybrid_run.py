"""A run of a hybrid student: alignments, decoding graph, and teachers of frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from lhotse import CutSet

from retort.alignment.store import AlignmentStore
from retort.alignment.unit_text import AcousticUnit, unit_text
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.progress import StageProgress
from retort.config.schema import Recipe
from retort.decoding.graph_search import ScaledGraph, graph_words
from retort.decoding.recogniser import Recogniser
from retort.distill.objective import Objective
from retort.engine.loop import Report
from retort.engine.processes import make_accelerator
from retort.evaluation.frame_accuracy import watch_frames
from retort.evaluation.recognise import recognise
from retort.evaluation.scalar_search import try_scales
from retort.evaluation.scoring import demand_words, score
from retort.graph.build import Graph, build_graph
from retort.graph.pool import DecoderPool
from retort.lm.config import load_lm_recipe
from retort.lm.factory import word_arpa
from retort.students.factory import build_student
from retort.students.hybrid import HybridStudent
from retort.students.student import Student
from retort.teachers import Teacher, open_teacher
from retort.teachers.symbols import check_units, teacher_symbols
from retort.text.normalise import Normaliser
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import SPECIAL
from retort.training.aligning import align, align_held_out, open_lexicon
from retort.training.batches import UtteranceDataset
from retort.training.data import Data, load_data
from retort.training.frames import FrameLabels, FrameReader, ReadUnit
from retort.training.hidden_store import open_stored_layers
from retort.training.init import check_pretrained, start_from_pretrained, take_start
from retort.training.plan import Plan, note_rejected
from retort.training.prerequisites import train_teachers, trained_lm
from retort.training.teach import complete_stores, normalised_texts, store_root, taught_by

SCALES = "acoustic_scales.json"
"""File of an experiment: word error rates on the validation data, by acoustic scale."""


def plan_hybrid(recipe: Recipe, root: Path, origin: str, progress: StageProgress, report: Report) -> Plan:
    """Prepare everything before the first update, stages that are missing: alignments, language models, graph.

    Args:
        root: of the experiments.
        origin: experiment whose weights the student starts from; empty for none.

    Raises:
        UserError: the data, the recipe or the experiment's folder is invalid.
    """
    _check(recipe)
    check_pretrained(recipe)
    alignments = align(recipe, root, progress, report)
    held_out = align_held_out(recipe, root, recipe.data.validation, alignments, progress, report)
    for source in recipe.data.test:
        align_held_out(recipe, root, [source], alignments, progress, report)
    train_teachers(recipe, root, progress, report)
    graph = make_graph(recipe, root, alignments, progress, report)
    accelerator = make_accelerator(recipe.training)
    with accelerator.main_process_first():
        data = load_data(recipe, root / "cache", progress)
    note_rejected(recipe, root, data, accelerator)
    readers, teachers = _teachers(recipe, root, alignments, data, progress, accelerator)
    torch.manual_seed(recipe.seed)  # here: no stage before may shift the student's weights
    student = build_student(recipe.student, alignments.tree.count, recipe.features.bins)
    assert isinstance(student, HybridStudent)
    if taken := start_from_pretrained(student, recipe.student.encoder.model):
        report(0, {"init.speech": taken})
    if origin:
        take_start(student, recipe, root / recipe.name, origin, report, graph=graph.about.key)
    student.set_priors(torch.from_numpy(alignments.priors))
    stored = open_stored_layers(recipe, student, data, root, progress, accelerator)
    objective = Objective(
        recipe.distill,
        student.tap_dims,
        {name: each.dim for name, each in teachers.items()},
        student.tap_units,
        outputs=student.outputs,
        symbols={name: each.tokenizer.symbols for name, each in readers.items()},
    )
    labels = FrameLabels(alignments, readers, student.encoder.subsampling)
    words = graph_words(graph)
    scales = sorted(recipe.hybrid.acoustic_scales)

    def recogniser(student: Student, scale: float) -> Recogniser:
        scaled = ScaledGraph(graph, scale)
        return Recogniser(student, words, recipe.features, recipe.normaliser, accelerator.device, scaled)

    def validate(student: Student) -> dict[str, float]:
        with DecoderPool(recipe.training.threads) as pool:
            validated = recogniser(student, scales[len(scales) // 2]).use_pool(pool)
            return _validated(validated, data.validation, held_out)

    def finish(student: Student) -> Recogniser:
        with DecoderPool(recipe.training.threads) as pool:
            tuned = recogniser(student, scales[0]).use_pool(pool)
            found = try_scales(tuned, data.validation, scales, progress)
        write_whole(root / recipe.name / SCALES, json.dumps(found.rates, indent=1) + "\n")
        if found.at_the_edge:
            what = f"the best acoustic scale, {found.best:g}, is at the edge of the tried range"
            report(recipe.training.steps, {"warning": what})
        return recogniser(student, found.smoothed)

    dataset = UtteranceDataset(
        recipe,
        None,
        partial(student.encoder.output_lengths, stored=student.encoder.stored),
        data.noise,
        labels,
        stored,
        longest=student.encoder.longest,
    )
    return Plan(student, objective, teachers, dataset, data, validate, finish, accelerator)


def _validated(recogniser: Recogniser, cuts: CutSet, alignments: AlignmentStore | None) -> dict[str, float]:
    """Error rates and the accuracy of aligned frames, from one pass of the encoder."""
    watch = watch_frames(recogniser.student, alignments)
    result = recognise(recogniser, cuts, watch=watch)
    rates = demand_words(score(result.references, result.hypotheses, result.speakers), "validation data")
    values = {"wer": rates.words.rate, "cer": rates.characters.rate}
    if watch is not None and watch.found is not None:
        values["frames"] = watch.found.rate
    return values


def _teachers(
    recipe: Recipe,
    root: Path,
    alignments: AlignmentStore,
    data: Data,
    progress: StageProgress,
    accelerator: Accelerator,
) -> tuple[dict[str, FrameReader], dict[str, Teacher]]:
    """The teachers of the rows, with their units and tokenizers."""
    transcripts = normalised_texts(data.train, recipe.normaliser)
    readers: dict[str, FrameReader] = {}
    teachers: dict[str, Teacher] = {}
    for name in taught_by(recipe):
        config = recipe.teachers[name]
        check_units(config, alignments.tree)
        own = teacher_symbols(config, transcripts)
        if config.symbols not in (None, own.size):
            raise UserError(
                f"teachers.{name}.symbols is {config.symbols}, but the teacher has {own.size}",
                where=config.model,
                remedy=f"Set it to {own.size}, or remove it",
            )
        readers[name] = FrameReader(cast(ReadUnit, config.unit), own)
        teachers[name] = open_teacher(config, accelerator.device, tokenizer=own, stores=store_root(root))

    texts = _texts_of(recipe, alignments, transcripts)
    complete_stores(recipe, teachers, texts, progress, accelerator, lambda name: readers[name].tokenizer)
    return readers, teachers


def _texts_of(
    recipe: Recipe, alignments: AlignmentStore | None, transcripts: list[str]
) -> Callable[[str], list[str]]:
    """Distinct input texts of each teacher for aligned utterances; empty for units without an alignment."""

    def texts(name: str) -> list[str]:
        unit = recipe.teachers[name].unit
        if unit == "text":
            return transcripts
        aligned = [] if alignments is None else alignments.values()
        return list(dict.fromkeys(unit_text(each, cast(AcousticUnit, unit))[0] for each in aligned))

    return texts


def make_graph(
    recipe: Recipe, root: Path, alignments: AlignmentStore, progress: StageProgress, report: Report
) -> Graph:
    """Build the decoding graph of `hybrid.lm`; systems with the same alignments and language model share it.

    Raises:
        UserError: as :func:`retort.graph.build.build_graph`.
    """
    first = load_lm_recipe(recipe.hybrid.lm)
    if (first.kind, first.tokenizer.kind) != ("ngram", "words"):
        raise UserError(
            "the graph needs an n-gram model over words",
            where=recipe.hybrid.lm,
            remedy="Set hybrid.lm to a recipe with kind: ngram and tokenizer.kind: words",
        )
    lm = trained_lm(first, root, progress, report)
    normalise = Normaliser(recipe.normaliser)
    words = open_tokenizer(lm / "tokenizer").symbols[len(SPECIAL) :]
    graph = build_graph(
        open_lexicon(
            recipe, [word for word in words if normalise(word) == word], alignments.tree.phones.symbols[1:]
        ),
        word_arpa(lm),
        alignments.tree,
        alignments.self_loops,
        silence_probability=recipe.hybrid.silence_probability,
        folder=alignments.folder.parent / "graphs" / first.name.replace("/", "-"),
        progress=progress,
    )
    if graph.about.left_out:
        count, some = len(graph.about.left_out), ", ".join(graph.about.left_out[:5])
        report(0, {"note": f"{count:,} words of {first.name} have no pronunciation ({some}, ...)"})
    return graph


def _check(recipe: Recipe) -> None:
    for key, needed in (("lexicon", "pronunciations"), ("lm", "a language model over words")):
        if not getattr(recipe.hybrid, key) and not (key == "lexicon" and recipe.hybrid.pronounce):
            raise UserError(
                f"hybrid.{key} is empty: a hybrid student needs {needed}",
                where=recipe.name,
                remedy=f"Set hybrid.{key}",
            )
