"""What the recipe of a language model may say; `retort lm train` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import MISSING

from retort.config import SHARED_CHOICES, LoopConfig, NormaliserConfig
from retort.errors import UserError
from retort.recipe import check_choices, read_recipe


@dataclass
class TextConfig:
    source: str = MISSING
    """A text file (plain, `.gz`, `.xz`), one sentence a line, or a Kaldi folder or manifest, whose transcripts are read."""
    repeat: int = 1
    """How often an epoch goes through it; for a small text beside a large one."""


@dataclass
class PieceConfig:
    kind: str = "wordpiece"
    """Trained on the text, with BERT's special pieces."""
    size: int = 8000
    """Most pieces; a small text gives fewer."""


@dataclass
class ModelConfig:
    layers: int = 6
    dim: int = 256
    heads: int = 4
    feedforward: int = 1024
    dropout: float = 0.1


@dataclass
class PieceBatchConfig:
    pieces: int = 4096
    """In one batch, padding counted."""
    longest: int = 128
    """Sentence, its two special pieces counted; the end of a longer one is cut off. A model from scratch has as
    many positions."""


@dataclass
class LmTrainingConfig(LoopConfig):
    checkpoints: int = 1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    masking: float = 0.15
    """Share of the pieces to be guessed; of these 80 % are hidden, 10 % replaced, 10 % shown (BERT)."""


@dataclass
class LmRecipe:
    kind: str = "masked"
    """`masked`: BERT and its kin."""
    name: str = MISSING
    """The experiment is `exp/NAME`."""
    seed: int = 1
    text: list[TextConfig] = field(default_factory=list)
    """What is learned from, less the sentences of `held_out`. Paths as in `data.train` of a recogniser."""
    held_out: list[str] = field(default_factory=list)
    """Validation: sources as in `text`."""
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)
    init: str = ""
    """Hugging Face name or folder of the encoder that is trained on, with its own pieces; empty: from scratch."""
    tokenizer: PieceConfig = field(default_factory=PieceConfig)
    """From scratch only."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """From scratch only."""
    batches: PieceBatchConfig = field(default_factory=PieceBatchConfig)
    training: LmTrainingConfig = field(default_factory=LmTrainingConfig)


LM_CHOICES: dict[str, tuple[str, ...]] = SHARED_CHOICES | {
    "kind": ("masked",),
    "tokenizer.kind": ("wordpiece",),
}


def load_lm_recipe(recipe: str, overrides: Sequence[str] = ()) -> LmRecipe:
    """Open a language model's recipe by name or path and lay `a.b=c` overrides over it.

    Raises:
        UserError: no such recipe, an unknown key, a value that is wrong by itself or beside another.
    """
    loaded = read_recipe(LmRecipe, recipe, overrides)
    check_choices(loaded, LM_CHOICES, recipe)
    for key, what in (("text", "learn from"), ("held_out", "validate on")):
        if not getattr(loaded, key):
            raise UserError(
                f"{key} is empty: there is nothing to {what}",
                where=recipe,
                remedy="Name text files, Kaldi folders or manifests",
            )
    if any(each.repeat < 1 for each in loaded.text):
        raise UserError("text has a repeat below 1", where=recipe, remedy="Leave the source out instead")
    if not 0.0 < loaded.training.masking < 1.0:
        raise UserError(
            f"training.masking is {loaded.training.masking:g}",
            where=recipe,
            remedy="Choose a share, e.g. 0.15",
        )
    if loaded.model.dim % loaded.model.heads:
        raise UserError(
            f"model.dim {loaded.model.dim} is not a multiple of model.heads {loaded.model.heads}",
            where=recipe,
        )
    if not 3 <= loaded.batches.longest <= loaded.batches.pieces:
        raise UserError(
            f"batches.longest is {loaded.batches.longest}, batches.pieces {loaded.batches.pieces}",
            where=recipe,
            remedy="Choose 3 <= longest <= pieces",
        )
    return loaded
