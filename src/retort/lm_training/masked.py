"""Training of masked language models (BERT), from scratch or from a pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.engine.folder import save_whole
from retort.lm.config import LmRecipe
from retort.lm.masked import MaskedBatch, MaskedLM, Masking, build_bert, fast_attention
from retort.lm.masked_scoring import fixed_masks, score_masked, score_sentences
from retort.lm.pieces import Cutter, train_wordpiece, word_level
from retort.lm.scoring import LmScore
from retort.lm_training.data import LmText
from retort.lm_training.trainer import Learner
from retort.pretrained.hub import (
    check_frame,
    check_mask_piece,
    longest_input,
    open_masked_lm,
    open_own_tokenizer,
    open_tokenizer,
    save_model,
)
from retort.teachers.fingerprint import tokenizer_fingerprint
from retort.text.tokenizers import SPECIAL, WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class MaskedLearner(Learner[MaskedBatch]):
    """A masked model; validation uses the same masks every time."""

    def __init__(self, recipe: LmRecipe, folder: Path, root: Path, text: LmText) -> None:
        self.recipe, self.held_out = recipe, text.held_out
        self.tokenizer = _tokenizer(recipe, folder, text)
        identity = {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "longest": recipe.batches.longest,
        }
        self.cutter = Cutter(self._cut, len(self.tokenizer), identity)
        self._masking = Masking(self.tokenizer, recipe.training.masking)
        self._rows = [np.array(ids) for ids in self._cut(text.held_out)]
        self._groups = fixed_masks(self._rows, recipe.training.masking)

    def build(self) -> MaskedLM:
        return MaskedLM(_model(self.recipe, self.tokenizer))

    def batch(self, rows: Sequence[NDArray[np.int64]], seed: int) -> MaskedBatch:
        return self._masking(rows, seed)

    def logits(self, model: MaskedLM, batch: MaskedBatch) -> Tensor:
        logits: Tensor = model(batch.ids, batch.mask, batch.chosen)
        return logits

    def validate(self, model: MaskedLM) -> dict[str, float]:
        guesses = score_masked(model, self.tokenizer, self._rows, self._groups)
        nll, correct = (
            np.concatenate([getattr(each, name) for each in guesses]) for name in ("nll", "correct")
        )
        return {"ce": float(nll.mean()), "correct": float(correct.mean())}

    def finish(self, model: MaskedLM, progress: StageProgress) -> LmScore:
        return score_sentences(
            model,
            self.tokenizer,
            self.held_out,
            self.recipe.batches.longest,
            lambda done, total: progress("score", done, total),
        )

    def save(self, model: MaskedLM, folder: Path) -> None:
        save_model(model.model, self.tokenizer, folder)

    def _cut(self, sentences: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self.tokenizer(
            list(sentences),
            truncation=True,
            max_length=self.recipe.batches.longest,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return rows


def _tokenizer(recipe: LmRecipe, folder: Path, text: LmText) -> PreTrainedTokenizerFast:
    """The tokenizer of `init` or of the experiment, trained if it is missing."""
    if recipe.init:
        tokenizer = open_tokenizer(recipe.init)
        check_frame(tokenizer, recipe.init)
        check_mask_piece(tokenizer, recipe.init)
        return tokenizer
    path = folder / "tokenizer"
    if not path.exists():
        tokenizer = _trained(recipe, text)
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            raise UserError("no training sentence is left", remedy="Add text, or hold out less")
        tokenizer.model_max_length = recipe.batches.longest
        save_whole(tokenizer.save_pretrained, path)
    return open_own_tokenizer(path)


def _trained(recipe: LmRecipe, text: LmText) -> PreTrainedTokenizerFast:
    if text.units is not None:
        return word_level(text.units.symbols)
    size = recipe.tokenizer.size
    if recipe.tokenizer.kind == "words":
        words = WordTokenizer.train(text.sentences(), size - 1)  # BERT has one more special piece
        return word_level(words.symbols[len(SPECIAL) :])
    return train_wordpiece(text.sentences(), size, recipe.normaliser.case == "lower")


def _model(recipe: LmRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    if not recipe.init:
        model = build_bert(recipe.model, tokenizer, recipe.batches.longest)
    else:
        model = open_masked_lm(recipe.init, fresh_head=True)
        if recipe.batches.longest > (limit := longest_input(model, tokenizer)):
            raise UserError(
                f"batches.longest is {recipe.batches.longest}, the model's maximum is {limit} pieces",
                where=recipe.init,
                remedy=f"Set batches.longest={limit}",
            )
    fast_attention(model)
    return model
