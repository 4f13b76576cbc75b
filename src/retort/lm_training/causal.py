"""Training of causal language models over the pieces of a student or over their own pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.corpora.open_cuts import find_data
from retort.engine.folder import save_whole
from retort.lm.arpa import arpa_words
from retort.lm.config import LmRecipe, PieceConfig
from retort.lm.factory import save_causal_lm
from retort.lm.neural import NETWORKS, CausalBatch, CausalNetwork, NeuralLM
from retort.lm.pieces import causal_cutter, train_pieces
from retort.lm.scoring import LmScore, score_text
from retort.lm_training.data import LmText
from retort.lm_training.soft_labels import open_soft_labels
from retort.lm_training.trainer import Learner
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import Tokenizer, WordTokenizer


class CausalLearner(Learner[CausalBatch]):
    """A causal network; validation is on all pieces of the held-out sentences, including EOS."""

    def __init__(self, recipe: LmRecipe, folder: Path, root: Path, text: LmText) -> None:
        self.recipe, self.text = recipe, text
        self.tokenizer = causal_tokenizer(recipe, folder, root, text)
        self.cutter = causal_cutter(self.tokenizer, recipe.batches.longest)
        self.soft_labels = open_soft_labels(recipe.soft_labels, root, self.tokenizer.symbols)
        self._held_out = [self.tokenizer.encode(each) for each in text.held_out]

    def build(self) -> CausalNetwork:
        return NETWORKS[self.recipe.model.kind](self.recipe.model, self.tokenizer.size)

    def batch(self, rows: Sequence[NDArray[np.int64]], seed: int) -> CausalBatch:
        return CausalBatch.of(rows)

    def logits(self, model: CausalNetwork, batch: CausalBatch) -> Tensor:
        logits: Tensor = model(batch.previous)[0]
        return logits[batch.mask]

    def loss(self, hard: Tensor, logits: Tensor, batch: CausalBatch) -> Tensor:
        return self.soft_labels.mix(hard, logits, batch) if self.soft_labels else hard

    def validate(self, model: CausalNetwork) -> dict[str, float]:
        scores = torch.cat(self._opened(model).score(self._held_out)).double()
        return {"ce": -float(scores.mean())}

    def finish(self, model: CausalNetwork, progress: StageProgress) -> LmScore:
        return score_text(
            self._opened(model), self.text.held_out, lambda done, total: progress("score", done, total)
        )

    def save(self, model: CausalNetwork, folder: Path) -> None:
        save_causal_lm(self._opened(model), folder)

    def _opened(self, model: CausalNetwork) -> NeuralLM:
        return NeuralLM(model, self.tokenizer, self.text.normalise)


def causal_tokenizer(recipe: LmRecipe, folder: Path, root: Path, text: LmText) -> Tokenizer:
    """The experiment's tokenizer; if it is missing, that of the student, of the units or of an ARPA file, or one trained on
    the text."""
    path, config = folder / "tokenizer", recipe.tokenizer
    if not path.exists():
        if text.units is not None:
            made: Tokenizer = WordTokenizer(text.units.symbols)
        elif config.kind == "student":
            made = _student_tokenizer(config, root)
        elif recipe.ngram.arpa:
            made = WordTokenizer(arpa_words(find_data(recipe.ngram.arpa)))
        else:
            made = train_pieces(text.sentences(), config)
        save_whole(made.save, path)
    return open_tokenizer(path)


def _student_tokenizer(config: PieceConfig, root: Path) -> Tokenizer:
    for folder in (root / config.model, Path(config.model)):
        for each in (folder, folder / "model"):
            if (each / "tokenizer").is_dir():
                return open_tokenizer(each / "tokenizer")
    raise UserError(
        f"there is no student with a tokenizer in {root / config.model}",
        where="tokenizer.model",
        remedy=f"Train it first (retort train {config.model}), or choose another experiment, model or release",
    )
