"""`retort train`: from data to a scored model, each earlier stage made when it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from lhotse import CutSet

from retort.config import Recipe, TeacherConfig
from retort.corpora.cuts import Rejected, read_rejected, write_rejected
from retort.decoding.recogniser import Recogniser, load
from retort.distill.objective import Objective
from retort.errors import UserError
from retort.evaluation.recognise import recognise
from retort.evaluation.scoring import score
from retort.recipe import load_recipe
from retort.students.cif import CifStudent
from retort.students.factory import build_student
from retort.teachers import Teacher, check_there, open_teacher, teacher_tokenizer
from retort.text.normalise import Normaliser
from retort.text.opening import open_tokenizer, train_tokenizer
from retort.text.tokenizers import Tokenizer
from retort.training.batches import UtteranceDataset
from retort.training.checkpoints import CheckpointFolder, chosen_steps, read_weights
from retort.training.data import Progress, load_data
from retort.training.earlier import missing_warm_start, train_teachers
from retort.training.folder import claim, is_of, save_whole
from retort.training.loop import Report
from retort.training.module import TrainingModule
from retort.training.plm import check_plm, start_from_plm
from retort.training.processes import lost_processes_told, make_accelerator
from retort.training.teach import complete_stores, store_root, taught_by
from retort.training.trainer import REJECTED, Trainer


@dataclass
class Outcome:
    """A finished run.

    Attributes:
        folder: `exp/NAME`.
        recogniser: the averaged model, as saved in `folder/model`.
        seconds: spent in updates.
        steps: updates made.
        params: of the shipped model.
        averaged: steps of the checkpoints in the average.
        rejected: training and validation utterances that could not be used.
        before: whether an earlier call had finished it, so that this one had nothing to do.
    """

    folder: Path
    recogniser: Recogniser
    seconds: float
    steps: int
    params: int
    averaged: list[int]
    rejected: list[Rejected]
    before: bool = False


@lost_processes_told()
def train(recipe: Recipe, root: Path, progress: Progress, report: Report) -> Outcome:
    """Train a recipe into `root/NAME`, going on where an earlier call stopped; a finished run is only opened.

    Args:
        recipe: checked.
        root: of the experiments; features are kept in `root/cache`, shared by all of them.
        progress: of the stages before training.
        report: of training.

    Raises:
        UserError: what the data, the recipe or the experiment's folder has wrong.
    """
    folder = root / recipe.name
    claim(folder, recipe)
    if (outcome := finished(recipe, root)) is not None:
        return outcome
    origin = _warm_start(recipe, root, progress, report)
    train_teachers(recipe, root, progress, report)
    accelerator = make_accelerator(recipe.training)
    # Before the data, which may take hours to prepare.
    check_plm(recipe)
    teachers = _open_teachers(recipe, root, accelerator)
    with accelerator.main_process_first():
        data = load_data(recipe, root / "cache", progress)
        tokenizer = load_tokenizer(recipe, folder, data.train, origin)
    # With the first checkpoint it becomes the trainer's affair.
    if accelerator.is_main_process and not (folder / "checkpoints").exists():
        write_rejected(data.rejected, folder / REJECTED)
    teachers |= _open_teachers(recipe, root, accelerator, tokenizer)
    complete_stores(recipe, teachers, data.train, progress, accelerator, tokenizer)
    torch.manual_seed(recipe.seed)  # here: no stage before may shift the student's weights
    student = build_student(recipe.student, tokenizer.size, recipe.features.bins)
    if origin:
        report(0, {f"init.{key}": value for key, value in start_from(student, tokenizer, origin).items()})
    if taken := start_from_plm(student, recipe, tokenizer):
        report(0, {"init.plm": taken})
    objective = Objective(
        recipe.distill, student.tap_dims, {name: each.dim for name, each in teachers.items()}
    )
    dataset = UtteranceDataset(recipe, tokenizer, student.encoder.output_lengths, data.noise)
    trainer = Trainer(
        recipe,
        folder,
        TrainingModule(student, objective),
        teachers,
        dataset,
        data.train,
        lambda student: free_running(student, tokenizer, recipe, data.validation, accelerator),
        accelerator,
        data.rejected,
    )
    for line in trainer.resume():
        report(trainer.position.step, {"warning": line})
    trainer.run(report)
    return _finish(recipe, folder, trainer, tokenizer)


def finished(recipe: Recipe, root: Path, device: str | None = None) -> Outcome | None:
    """What an earlier call made of the same recipe, if it came to the end and its model is there.

    Args:
        device: of the recogniser; by default where the recipe trains.
    """
    folder, steps = root / recipe.name, recipe.training.steps
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if not is_of(folder, recipe) or steps not in checkpoints.steps():
        return None
    if device is None:
        device = "cpu" if recipe.training.device == "cpu" or not torch.cuda.is_available() else "cuda"
    try:
        state = checkpoints.state(steps)
        recogniser = load(folder / "model", device)
    except (UserError, OSError, ValueError):
        return None
    torch.set_num_threads(recipe.training.threads)
    averaged = chosen_steps(checkpoints.steps(), state["scores"], recipe.training)
    params = sum(parameter.numel() for parameter in recogniser.student.parameters())
    rejected = read_rejected(folder / REJECTED)
    return Outcome(folder, recogniser, state["seconds"], steps, params, averaged, rejected, before=True)


def load_tokenizer(recipe: Recipe, folder: Path, cuts: CutSet, origin: str = "") -> Tokenizer:
    """The experiment's tokenizer; if it is missing, trained from the training text alone, or that of `origin`."""
    if (folder / "tokenizer").exists():
        return open_tokenizer(folder / "tokenizer")
    if recipe.tokenizer.kind == "init":
        tokenizer = open_tokenizer(_model_folder(origin) / "tokenizer")
        save_whole(tokenizer.save, folder / "tokenizer")
        return tokenizer
    normalise = Normaliser(recipe.normaliser)
    texts = dict.fromkeys(normalise(cut.supervisions[0].text or "") for cut in cuts)
    pieces, case = None, "keep"
    if recipe.tokenizer.kind == "teacher":
        config: TeacherConfig = recipe.teachers[recipe.tokenizer.teacher]
        pieces, case = teacher_tokenizer(config), config.case
    tokenizer = train_tokenizer(
        [text for text in texts if text],
        recipe.tokenizer,
        teacher=pieces,
        teacher_case=case,
    )
    save_whole(tokenizer.save, folder / "tokenizer")
    return tokenizer


def free_running(
    student: CifStudent, tokenizer: Tokenizer, recipe: Recipe, cuts: CutSet, accelerator: Accelerator
) -> dict[str, float]:
    """Error rates of the student as it stands, decoded without any help from the references."""
    recogniser = Recogniser(student, tokenizer, recipe.features, recipe.normaliser, accelerator.device)
    result = recognise(recogniser, cuts)
    cif = score(result.references, result.hypotheses, result.speakers)
    ctc = score(result.references, result.ctc, result.speakers)
    return {"cer": cif.characters.rate, "wer": cif.words.rate, "ctc_cer": ctc.characters.rate}


def start_from(student: CifStudent, tokenizer: Tokenizer, experiment: str) -> dict[str, int]:
    """Copy the weights of another model that fit by name and shape; counts of tensors taken and left.

    What belongs to the vocabulary (:attr:`CifStudent.vocabulary_parts`) is taken only from a model with the same
    vocabulary in the same order.

    Raises:
        UserError: no model there, or nothing of it fits.
    """
    path = _model_folder(experiment)
    weights, own = read_weights(path / "model.safetensors"), student.state_dict()
    other = open_tokenizer(path / "tokenizer").symbols != tokenizer.symbols
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own
        and own[name].shape == value.shape
        and not (other and name.startswith(student.vocabulary_parts))
    }
    if not fitting:
        raise UserError("none of its weights fit this student", where=experiment)
    student.load_state_dict(fitting, strict=False)
    return {"taken": len(fitting), "not_used": len(weights) - len(fitting), "fresh": len(own) - len(fitting)}


def _model_folder(experiment: str) -> Path:
    root = Path(experiment)
    for path in (root / "model", root):
        if (path / "model.safetensors").is_file():
            return path
    raise UserError(
        "no trained model here", where=experiment, remedy="training.init takes an experiment's folder"
    )


def _warm_start(recipe: Recipe, root: Path, progress: Progress, report: Report) -> str:
    """The experiment that the student starts from, trained first if it is another recipe's; empty for none."""
    if not recipe.training.warm_start:
        return recipe.training.init
    if first := missing_warm_start(recipe, root):
        train(first, root, lambda stage, *counts: progress(f"{first.name}: {stage}", *counts), report)
    return str(root / load_recipe(recipe.training.warm_start).name)


def _finish(recipe: Recipe, folder: Path, trainer: Trainer, tokenizer: Tokenizer) -> Outcome:
    student, averaged = trainer.student, trainer.chosen()
    student.load_state_dict(trainer.checkpoints.average(averaged))
    recogniser = Recogniser(
        student, tokenizer, recipe.features, recipe.normaliser, trainer.accelerator.device
    )
    if trainer.accelerator.is_main_process:
        save_whole(recogniser.save, folder / "model")
    trainer.accelerator.wait_for_everyone()
    position = trainer.position
    params = sum(parameter.numel() for parameter in student.parameters())
    return Outcome(folder, recogniser, position.seconds, position.step, params, averaged, trainer.rejected)


def _open_teachers(
    recipe: Recipe, root: Path, accelerator: Accelerator, tokenizer: Tokenizer | None = None
) -> dict[str, Teacher]:
    """Those of hidden states; given the student's tokenizer, those of soft labels, before that only looked for."""
    opened = {}
    for name in taught_by(recipe):
        config = recipe.teachers[name]
        if (config.topk is None) == (tokenizer is None):
            opened[name] = open_teacher(
                config, accelerator.device, tokenizer=tokenizer, stores=store_root(root)
            )
        elif tokenizer is None:
            check_there(config)
    return opened
