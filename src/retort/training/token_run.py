"""A run of a student whose output is tokens: vocabulary, teachers and validation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from lhotse import CutSet

from retort.common.progress import StageProgress
from retort.config.schema import Recipe, TeacherConfig
from retort.corpora.sentences import Sentences
from retort.decoding.recogniser import Recogniser
from retort.distill.objective import Objective
from retort.engine.folder import save_whole
from retort.engine.loop import Report
from retort.engine.processes import make_accelerator
from retort.evaluation.recognise import recognise
from retort.evaluation.scoring import demand_words, score
from retort.pretrained.whisper import whisper_tokenizer
from retort.students.cif import CifStudent
from retort.students.factory import build_student
from retort.students.student import Student
from retort.teachers import Teacher, check_there, open_teacher, teacher_tokenizer
from retort.teachers.whisper import SamplesOf, reads_audio
from retort.text.normalise import Normaliser
from retort.text.tokenizer_io import open_tokenizer, train_tokenizer
from retort.text.tokenizers import Tokenizer
from retort.training.batches import UtteranceDataset
from retort.training.data import Data, load_data
from retort.training.hidden_store import open_stored_layers
from retort.training.init import (
    check_plm,
    check_pretrained,
    model_folder,
    start_from_plm,
    start_from_pretrained,
    take_start,
)
from retort.training.language_part import check_language, take_language
from retort.training.plan import Plan, note_rejected
from retort.training.prerequisites import train_teachers
from retort.training.recogniser_teacher import LoadedRecogniser
from retort.training.sharded import ShardedCuts
from retort.training.teach import (
    CutSamples,
    complete_stores,
    normalised_texts,
    store_root,
    taught_by,
    texts_with_ids,
)
from retort.training.text_injection import TextInjection, check_texts


def plan_tokens(recipe: Recipe, root: Path, origin: str, progress: StageProgress, report: Report) -> Plan:
    """Prepare everything before the first update, including missing stages.

    Args:
        root: of the experiments.
        origin: experiment whose weights the student starts from; empty for none.

    Raises:
        UserError: the data, the recipe or the experiment's folder is invalid.
    """
    train_teachers(recipe, root, progress, report)
    accelerator = make_accelerator(recipe.training)
    # Before the preparation of the data, which may take hours.
    check_plm(recipe)
    check_language(recipe)
    check_pretrained(recipe)
    check_texts(recipe.text_injection)
    teachers = _open_teachers(recipe, root, accelerator)
    with accelerator.main_process_first():
        data = load_data(recipe, root / "cache", progress)
        tokenizer = load_tokenizer(recipe, root / recipe.name, data.train, origin)
    note_rejected(recipe, root, data, accelerator)
    samples_of = CutSamples(data.train)
    teachers |= _open_teachers(recipe, root, accelerator, tokenizer, samples_of)

    def texts_of(name: str) -> list[str]:
        if not reads_audio(teachers[name]):
            return normalised_texts(data.train, recipe.normaliser)
        assert not isinstance(data.train, ShardedCuts)  # refused when the data is loaded
        return texts_with_ids(data.train, recipe.normaliser)

    complete_stores(recipe, teachers, texts_of, progress, accelerator, lambda name: tokenizer, samples_of)
    torch.manual_seed(recipe.seed)  # here, so that earlier stages do not change the student's weights
    student = build_student(recipe.student, tokenizer.size, recipe.features.bins)
    student.read_tokenizer(tokenizer)
    if taken := start_from_pretrained(student, recipe.student.encoder.model, tokenizer):
        report(0, {"init.speech": taken})
    if origin:
        take_start(student, recipe, root / recipe.name, origin, report, tokenizer=tokenizer)
    if isinstance(student, CifStudent) and (taken := start_from_plm(student, recipe, tokenizer)):
        report(0, {"init.plm": taken})
    if taken := take_language(student, recipe, tokenizer):
        report(0, {"init.language": taken})
    stored = open_stored_layers(recipe, student, data, root, progress, accelerator)
    dims = {name: each.dim for name, each in teachers.items()}

    def recogniser(student: Student) -> Recogniser:
        return Recogniser(student, tokenizer, recipe.features, recipe.normaliser, accelerator.device)

    return Plan(
        student,
        Objective(recipe.distill, student.tap_dims, dims, student.tap_units),
        teachers,
        UtteranceDataset(
            recipe,
            tokenizer,
            partial(student.encoder.output_lengths, stored=student.encoder.stored),
            data.noise,
            stored=stored,
            longest=student.encoder.longest,
            most_tokens=student.most_tokens,
            shards=data.train if isinstance(data.train, ShardedCuts) else None,
        ),
        data,
        lambda student: free_running(recogniser(student), data.validation),
        recogniser,
        accelerator,
        _text_injection(recipe, tokenizer, data, student.most_tokens),
    )


def _text_injection(
    recipe: Recipe, tokenizer: Tokenizer, data: Data, most_tokens: int | None
) -> TextInjection | None:
    """The text that the decoder is trained on, without the transcripts of the validation data; None without text."""
    if not recipe.text_injection.texts:
        return None
    excluded = normalised_texts(data.validation, recipe.normaliser)
    normalise = Normaliser(recipe.normaliser)
    return TextInjection(recipe.text_injection, recipe.seed, tokenizer, normalise, excluded, most_tokens)


def load_tokenizer(
    recipe: Recipe, folder: Path, cuts: CutSet | ShardedCuts, origin: str = ""
) -> Tokenizer:
    """The experiment's tokenizer; if it is missing, trained on the training text, or copied from `origin`."""
    if (folder / "tokenizer").exists():
        return open_tokenizer(folder / "tokenizer")
    if recipe.tokenizer.kind == "init":
        tokenizer = open_tokenizer(model_folder(origin) / "tokenizer")
        save_whole(tokenizer.save, folder / "tokenizer")
        return tokenizer
    normalise = Normaliser(recipe.normaliser)
    texts = normalised_texts(cuts, recipe.normaliser)
    if recipe.tokenizer.kind == "whisper":
        model = recipe.tokenizer.model or recipe.student.encoder.model
        more = (normalise(line) for path in recipe.tokenizer.texts for line in Sentences(path))
        tokenizer = whisper_tokenizer(model, recipe.tokenizer, texts, more)
        save_whole(tokenizer.save, folder / "tokenizer")
        return tokenizer
    pieces, case = None, "keep"
    if recipe.tokenizer.kind == "teacher":
        config: TeacherConfig = recipe.teachers[recipe.tokenizer.teacher]
        pieces, case = teacher_tokenizer(config), config.case
    tokenizer = train_tokenizer(
        texts,
        recipe.tokenizer,
        teacher=pieces,
        teacher_case=case,
    )
    save_whole(tokenizer.save, folder / "tokenizer")
    return tokenizer


def free_running(recogniser: Recogniser, cuts: CutSet) -> dict[str, float]:
    """Error rates of a recogniser with free-running decoding."""
    result = recognise(recogniser, cuts)
    found = demand_words(score(result.references, result.hypotheses, result.speakers), "validation data")
    rates = {"cer": found.characters.rate, "wer": found.words.rate}
    if result.ctc:
        rates["ctc_cer"] = score(result.references, result.ctc, result.speakers).characters.rate
    return rates


def _open_teachers(
    recipe: Recipe,
    root: Path,
    accelerator: Accelerator,
    tokenizer: Tokenizer | None = None,
    samples_of: SamplesOf | None = None,
) -> dict[str, Teacher]:
    """The teachers of hidden states, and of soft labels if the tokenizer is given; otherwise only checked."""
    opened = {}
    for name in taught_by(recipe):
        config = recipe.teachers[name]
        if (config.topk is None) == (tokenizer is None):
            opened[name] = open_teacher(
                config,
                accelerator.device,
                tokenizer=tokenizer,
                stores=store_root(root),
                samples_of=samples_of,
                open_recogniser=LoadedRecogniser,
            )
        elif tokenizer is None:
            check_there(config)
    return opened
