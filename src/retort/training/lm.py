"""`retort lm train`: from text to a masked language model that can be a teacher."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from retort.distill.row import Tally
from retort.errors import UserError
from retort.files import write_whole
from retort.lm.config import LmRecipe
from retort.lm.guessing import LmScore, fixed_masks, guess, score_sentences
from retort.lm.masked import MaskedBatch, MaskedLM, Masking, build_bert, fast_attention
from retort.lm.pieces import PieceMix, length_batches, train_wordpiece
from retort.lm.pretrained import (
    check_frame,
    check_mask_piece,
    longest_input,
    open_masked_lm,
    open_tokenizer,
    save_model,
)
from retort.training.folder import claim, save_whole
from retort.training.lm_data import LmText, Progress, open_pieces, open_text
from retort.training.loop import Loop, Report
from retort.training.processes import lost_processes_told, make_accelerator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class LmOutcome:
    """A finished language model.

    Attributes:
        folder: `exp/NAME`; `folder/model` is a Hugging Face folder.
        steps: updates made.
        seconds: spent in updates.
        averaged: steps of the checkpoints in the average.
        score: on the held-out text.
    """

    folder: Path
    steps: int
    seconds: float
    averaged: list[int]
    score: LmScore


@lost_processes_told()
def train_lm(recipe: LmRecipe, root: Path, progress: Progress, report: Report) -> LmOutcome:
    """Train a masked language model into `root/NAME`, going on where an earlier call stopped.

    Args:
        recipe: checked.
        root: of the experiments; text cut into pieces is kept in `root/cache/lm`.
        progress: of the stages before and after training.
        report: of training.

    Raises:
        UserError: what the text, the recipe, the model or the experiment's folder has wrong.
    """
    folder = root / recipe.name
    claim(folder, recipe)
    accelerator = make_accelerator(recipe.training)
    with accelerator.main_process_first():
        text = open_text(recipe)
        tokenizer = _tokenizer(recipe, folder, text)
        mix = open_pieces(recipe, text, tokenizer, root / "cache" / "lm", progress)
    torch.manual_seed(recipe.seed)  # here: no stage before may shift the model's weights
    model = _model(recipe, tokenizer)
    trainer = LmTrainer(recipe, folder, MaskedLM(model), mix, tokenizer, text.held_out, accelerator)
    for line in trainer.resume():
        report(trainer.position.step, {"warning": line})
    trainer.run(report)
    averaged = trainer.chosen()
    trainer.student.load_state_dict(trainer.checkpoints.average(averaged))
    score = score_sentences(
        trainer.student,
        tokenizer,
        text.held_out,
        recipe.batches.longest,
        lambda done, total: progress("score", done, total),
    )
    if accelerator.is_main_process:
        save_whole(lambda path: save_model(trainer.student.model, tokenizer, path), folder / "model")
        write_whole(folder / "score.json", json.dumps(asdict(score), indent=1) + "\n")
    accelerator.wait_for_everyone()
    return LmOutcome(folder, trainer.position.step, trainer.position.seconds, averaged, score)


class _LmModule(nn.Module):
    """The model as the loop wants it: `student` is what is kept; nothing else learns."""

    def __init__(self, model: MaskedLM) -> None:
        super().__init__()
        self.student = model
        self.objective = nn.Module()

    def forward(self, batch: MaskedBatch) -> Tensor:
        logits: Tensor = self.student(batch.ids, batch.mask, batch.chosen)
        return logits


class LmTrainer(Loop[MaskedBatch]):
    """Trains one masked language model.

    Args:
        recipe: what to do.
        folder: of the experiment.
        model: that learns.
        mix: to learn from.
        tokenizer: of the pieces.
        held_out: sentences for validation, with masks that stay the same: `ce`, which chooses checkpoints, and
            `correct`, the share of first guesses that are right.
        accelerator: devices and processes.
    """

    criterion = "ce"

    def __init__(
        self,
        recipe: LmRecipe,
        folder: Path,
        model: MaskedLM,
        mix: PieceMix,
        tokenizer: PreTrainedTokenizerFast,
        held_out: Sequence[str],
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.mix = recipe, mix
        self.masking = Masking(tokenizer, recipe.training.masking)
        encoded = tokenizer(list(held_out), truncation=True, max_length=recipe.batches.longest)
        rows = [np.array(ids) for ids in encoded["input_ids"]]
        validate = _validation(tokenizer, rows, recipe.training.masking)
        super().__init__(recipe.training, recipe.seed, folder, _LmModule(model), validate, accelerator)

    def _groups(self) -> Iterator[list[MaskedBatch]]:
        for epoch in itertools.count(self.position.epoch):
            self.position.epoch = epoch
            batches = self._batches(epoch, self.position.batches)
            while group := list(itertools.islice(batches, self.config.accumulation)):
                self.position.batches += len(group)
                yield group
            self.position.batches = 0

    def _batches(self, epoch: int, skip: int) -> Iterator[MaskedBatch]:
        """This process's batches of an epoch, the first `skip` left out; all processes have as many."""
        draw = np.random.default_rng((self.recipe.seed, epoch))
        batches = length_batches(self.mix.lengths, self.mix.epoch, self.recipe.batches.pieces, draw)
        world = self.accelerator.num_processes
        usable = len(batches) // world * world if len(batches) >= world else 0
        if not usable:
            raise UserError(
                f"{len(batches)} batches are too few for {world} processes", remedy="Lower batches.pieces"
            )
        for number in range(self.accelerator.process_index + skip * world, usable, world):
            seed = zlib.crc32(f"{self.recipe.seed} {epoch} {number}".encode())
            yield self.masking([self.mix[int(index)] for index in batches[number]], seed)

    def _counts(self, group: Sequence[MaskedBatch]) -> list[int]:
        return [sum(len(batch.targets) for batch in group)]

    def _forward(self, batch: MaskedBatch) -> tuple[list[Tensor], Mapping[str, Tally]]:
        logits, count = self.wrapped(batch), len(batch.targets)
        loss = F.cross_entropy(logits.float(), batch.targets, reduction="sum")
        correct = (logits.detach().argmax(-1) == batch.targets).sum()
        return [loss], {"ce": Tally(loss.detach(), count), "correct": Tally(correct, count)}


def _validation(
    tokenizer: PreTrainedTokenizerFast, rows: list[np.ndarray], share: float
) -> Callable[[MaskedLM], dict[str, float]]:
    groups = fixed_masks(rows, share)

    def validate(model: MaskedLM) -> dict[str, float]:
        guesses = guess(model, tokenizer, rows, groups)
        nll, correct = (
            np.concatenate([getattr(each, name) for each in guesses]) for name in ("nll", "correct")
        )
        return {"ce": float(nll.mean()), "correct": float(correct.mean())}

    return validate


def _tokenizer(recipe: LmRecipe, folder: Path, text: LmText) -> PreTrainedTokenizerFast:
    """That of `init`, or the experiment's own, trained if it is missing."""
    if recipe.init:
        tokenizer = open_tokenizer(recipe.init)
        check_frame(tokenizer, recipe.init)
        check_mask_piece(tokenizer, recipe.init)
        return tokenizer
    path = folder / "tokenizer"
    if not path.exists():
        sentences = (sentence for source, _ in text.sources for sentence in text.training(source))
        tokenizer = train_wordpiece(sentences, recipe.tokenizer.size, recipe.normaliser.case == "lower")
        tokenizer.model_max_length = recipe.batches.longest
        save_whole(tokenizer.save_pretrained, path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _model(recipe: LmRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    if not recipe.init:
        model = build_bert(recipe.model, tokenizer, recipe.batches.longest)
    else:
        model = open_masked_lm(recipe.init, fresh_head=True)
        if recipe.batches.longest > (limit := longest_input(model, tokenizer)):
            raise UserError(
                f"batches.longest is {recipe.batches.longest}, the model reads {limit} pieces",
                where=recipe.init,
                remedy=f"Set batches.longest={limit}",
            )
    fast_attention(model)
    return model
