"""`retort lm train`: from text to a language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.common.locks import alone_in, check_there
from retort.common.progress import StageProgress
from retort.corpora.open_cuts import find_data
from retort.engine.folder import claim, save_whole, tidy
from retort.engine.loop import Report
from retort.engine.processes import make_accelerator, report_lost_processes
from retort.lm.arpa import read_arpa
from retort.lm.config import LmRecipe
from retort.lm.factory import save_causal_lm
from retort.lm.kneser_ney import FALLBACK, estimate
from retort.lm.ngram import NgramLM, NgramTable
from retort.lm.pieces import causal_cutter
from retort.lm.scoring import LmScore, score_text
from retort.lm_training.causal import CausalLearner, causal_tokenizer
from retort.lm_training.data import LmText, open_pieces, open_text
from retort.lm_training.masked import MaskedLearner
from retort.lm_training.trainer import Learner, LmTrainer
from retort.text.tokenizers import Tokenizer

LEARNERS: dict[str, type[Learner[Any]]] = {"masked": MaskedLearner, "causal": CausalLearner}


@dataclass(frozen=True)
class LmOutcome:
    """A finished language model.

    Attributes:
        folder: `exp/NAME`; `folder/model` is the model's own.
        score: on the held-out text.
        summary: one line about its training.
    """

    folder: Path
    score: LmScore
    summary: str


@report_lost_processes()
def train_lm(recipe: LmRecipe, root: Path, progress: StageProgress, report: Report) -> LmOutcome:
    """Train a language model in `root/NAME`, resuming an earlier call.

    Args:
        recipe: checked recipe.
        root: folder of the experiments; tokenised text is cached in `root/cache/lm`.
        progress: called during the stages before and after training.
        report: called during training.

    Raises:
        UserError: the text, the recipe, the model or the experiment's folder is invalid, or another process trains
            it.
    """
    with alone_in(root / recipe.name):
        return train_lm_here(recipe, root, progress, report)


def train_lm_here(recipe: LmRecipe, root: Path, progress: StageProgress, report: Report) -> LmOutcome:
    """The body of :func:`train_lm`; the caller must have locked the experiment."""
    folder = root / recipe.name
    tidy(folder)
    claim(folder, recipe)
    accelerator = make_accelerator(recipe.training)
    if recipe.kind == "ngram":
        return _estimate(recipe, root, progress, accelerator)
    with accelerator.main_process_first():
        text = open_text(recipe, folder, progress)
        learner = LEARNERS[recipe.kind](recipe, folder, root, text)
        mix = open_pieces(recipe, text, learner.cutter, root / "cache" / "lm", progress)
    trainer = LmTrainer(recipe, folder, learner, mix, accelerator)
    for line in trainer.resume():
        report(trainer.position.step, {"warning": line})
    trainer.run(report)
    averaged = trainer.chosen()
    trainer.student.load_state_dict(trainer.checkpoints.average(averaged))
    score = learner.finish(trainer.student, progress)
    if accelerator.is_main_process:
        _save(lambda path: learner.save(trainer.student, path), text, folder)
        _write_score(score, folder)
    accelerator.wait_for_everyone()
    return LmOutcome(
        folder, score, f"{trainer.position.step:,} steps, average of {averaged}{_left_out(text)}"
    )


def _estimate(recipe: LmRecipe, root: Path, progress: StageProgress, accelerator: Accelerator) -> LmOutcome:
    """Estimate n-grams in the first process; the others only score."""
    folder = root / recipe.name
    with accelerator.main_process_first():
        text = open_text(recipe, folder, progress)
        tokenizer = causal_tokenizer(recipe, folder, root, text)
        if accelerator.is_main_process:
            table, summary = _table(recipe, text, tokenizer, root / "cache" / "lm", progress)
            model = NgramLM(table, tokenizer, text.normalise)
            score = score_text(model, text.held_out, lambda done, total: progress("score", done, total))
            _save(lambda path: save_causal_lm(model, path), text, folder)
            _write_score(score, folder)
        else:
            score, summary = LmScore(**read_json(folder / "score.json")), ""
    return LmOutcome(folder, score, summary)


def _table(
    recipe: LmRecipe, text: LmText, tokenizer: Tokenizer, cache: Path, progress: StageProgress
) -> tuple[NgramTable, str]:
    """The n-grams, read or estimated, and a summary of their numbers."""
    if recipe.ngram.arpa:
        table, left_out = read_arpa(find_data(recipe.ngram.arpa), tokenizer.symbols)
        notes = f"; {left_out:,} with other pieces omitted" if left_out else ""
        if left_out > sum(table.counts):
            raise UserError(
                f"{left_out:,} of its n-grams have pieces that {recipe.tokenizer.model} lacks",
                where=recipe.ngram.arpa,
                remedy="Choose one over the student's pieces",
            )
    else:
        mix = open_pieces(recipe, text, causal_cutter(tokenizer, recipe.batches.longest), cache, progress)
        progress("n-grams", 0, 1)
        ids, repeats = mix.counted()
        table, discounts = estimate(
            ids, mix.lengths, repeats, tokenizer.size, recipe.ngram.order, recipe.ngram.prune
        )
        progress("n-grams", 1, 1)
        fixed = [str(order) for order, each in enumerate(discounts, 1) if each == FALLBACK]
        notes = f"; fixed discounts for order {', '.join(fixed)}" if fixed else ""
    counts = ", ".join(f"{count:,}" for count in table.counts)
    return table, f"n-grams of 1 to {table.order} pieces: {counts}{notes}{_left_out(text)}"


def _save(write: Callable[[Path], object], text: LmText, folder: Path) -> None:
    """Write the model and its units."""

    def both(path: Path) -> None:
        write(path)
        if text.units is not None:
            text.units.units.save(path)

    check_there(folder)
    save_whole(both, folder / "model")


def _left_out(text: LmText) -> str:
    left_out = str(text.units.left_out) if text.units is not None else ""
    return f"; {left_out}" if left_out else ""


def _write_score(score: LmScore, folder: Path) -> None:
    write_whole(folder / "score.json", json.dumps(asdict(score), indent=1) + "\n")
