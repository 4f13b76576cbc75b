"""What the recipe of a language model may say; `retort lm train` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import MISSING

from retort.common.errors import UserError
from retort.config.checks import check_choices
from retort.config.loading import read_recipe
from retort.config.ranges import BILLION, MILLION, SEEDS, WIDEST, number, numbers
from retort.config.schema import SHARED_CHOICES, LoopConfig, NormaliserConfig


@dataclass
class TextConfig:
    source: str = MISSING
    """A text file (plain, `.gz`, `.xz`), one sentence a line, or a Kaldi folder or manifest, whose transcripts are read."""
    repeat: int = number(1, 1, MILLION)
    """How often an epoch goes through it; for a small text beside a large one."""


@dataclass
class PieceConfig:
    kind: str = "wordpiece"
    """Of a masked model `wordpiece`, trained on the text, with BERT's special pieces, or `words`. Of the others
    `student` (those of `model`), or trained on the text: `characters`, `bpe` (sentencepiece) or `words`. Over
    `units` it is `words`, which are then all the symbols that the unit has."""
    model: str = ""
    """For `student`: an experiment's name, or the folder of an experiment, a model or a release."""
    size: int = number(8000, 5, 10 * MILLION)
    """Most pieces, the special ones counted; a small text gives fewer. Of `bpe` exactly so many."""


@dataclass
class UnitConfig:
    """What a language model is over, if not over text: sentences are pronounced, and it reads how they are."""

    unit: str = ""
    """Empty: the text itself. `senone` or `phone`: what an alignment is made of, without silences."""
    alignments: str = ""
    """Folder of alignments (`retort.alignment.store`): their tree says which phones and senones there are, their lexicon
    how the words are said that occur in them."""
    lexicon: list[str] = field(default_factory=list)
    """Further lexicons, in the style of the CMU dictionary, for words that the first ones lack. Paths as in `text`."""
    pronounce: bool = False
    """Of English: words that the lexicons lack are said as in pocketsphinx's dictionary, if it is installed, or by
    espeak-ng's rules. Without, or where these fail, a sentence with such a word is left out."""
    sample: bool = False
    """Whether each word of several pronunciations is said in one drawn at random, by `seed`, or in the first one."""


@dataclass
class ModelConfig:
    """Of a neural model."""

    kind: str = "transformer"
    """`transformer`, or of a causal model `lstm`, whose layers are as wide as `dim`."""
    layers: int = number(6, 1, 1000)
    dim: int = number(256, 1, WIDEST)
    heads: int = number(4, 1, 1024)
    feedforward: int = number(1024, 1, WIDEST)
    dropout: float = number(0.1, 0, 1, below=True)


@dataclass
class NgramConfig:
    order: int = number(4, 1, 20)
    """Pieces of the longest n-grams."""
    prune: list[int] = numbers([], 0, BILLION)
    """Of n-grams of 2, 3, ... pieces those seen so often or less are left out; the last number holds for all longer
    ones. Empty: all are kept."""
    arpa: str = ""
    """An ARPA file (`.gz` too) over the same pieces, or with `tokenizer.kind: words` over words of its own, estimated
    elsewhere, to be taken as it is."""


@dataclass
class PieceBatchConfig:
    pieces: int = number(4096, 3, MILLION)
    """In one batch, padding counted."""
    longest: int = number(128, 3, MILLION)
    """Sentence, its two special pieces counted; the end of a longer one is cut off. A masked model from scratch has
    as many positions."""


@dataclass
class LmTrainingConfig(LoopConfig):
    checkpoints: int = number(1, 1, 1000)
    betas: list[float] = numbers([0.9, 0.98], 0, 1, below=True, length=2)
    masking: float = number(0.15, 0, 1, above=True, below=True)
    """Of a masked model: share of the pieces to be guessed; of these 80 % are hidden, 10 % replaced, 10 % shown
    (BERT)."""


@dataclass
class LmRecipe:
    kind: str = "masked"
    """`masked` (BERT and its kin), `causal` (guesses the next piece) or `ngram` (the same by counting: interpolated
    modified Kneser-Ney)."""
    name: str = MISSING
    """The experiment is `exp/NAME`."""
    seed: int = number(1, 0, SEEDS)
    text: list[TextConfig] = field(default_factory=list)
    """What is learned from, less the sentences of `held_out`. Paths as in `data.train` of a recogniser."""
    held_out: list[str] = field(default_factory=list)
    """Validation: sources as in `text`."""
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)
    units: UnitConfig = field(default_factory=UnitConfig)
    init: str = ""
    """Of a masked model: Hugging Face name or folder of the encoder that is trained on, with its own pieces; empty:
    from scratch."""
    tokenizer: PieceConfig = field(default_factory=PieceConfig)
    """From scratch only."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """From scratch only."""
    ngram: NgramConfig = field(default_factory=NgramConfig)
    """Of an n-gram model, which reads nothing of `model` and `training`, of `batches` only `longest`."""
    batches: PieceBatchConfig = field(default_factory=PieceBatchConfig)
    training: LmTrainingConfig = field(default_factory=LmTrainingConfig)


LM_CHOICES: dict[str, tuple[str, ...]] = SHARED_CHOICES | {
    "kind": ("masked", "causal", "ngram"),
    "units.unit": ("", "senone", "phone"),
}
OF_A_KIND: dict[str, dict[str, tuple[str, ...]]] = {
    "masked": {"tokenizer.kind": ("wordpiece", "words"), "model.kind": ("transformer",)},
    "causal": {
        "tokenizer.kind": ("student", "characters", "bpe", "words"),
        "model.kind": ("transformer", "lstm"),
    },
    "ngram": {"tokenizer.kind": ("student", "characters", "bpe", "words")},
}


def load_lm_recipe(recipe: str, overrides: Sequence[str] = ()) -> LmRecipe:
    """Open a language model's recipe by name or path and lay `a.b=c` overrides over it.

    Raises:
        UserError: no such recipe, an unknown key, a value that is wrong by itself or beside another.
    """
    loaded = read_recipe(LmRecipe, recipe, overrides)
    check_choices(loaded, LM_CHOICES, recipe)
    check_choices(loaded, OF_A_KIND[loaded.kind], recipe)
    _check_text(loaded, recipe)
    _check_units(loaded, recipe)
    _check_model(loaded, recipe)
    return loaded


def _check_text(loaded: LmRecipe, where: str) -> None:
    for key, what in (("text", "learn from"), ("held_out", "validate on")):
        if not getattr(loaded, key) and not (key == "text" and loaded.ngram.arpa):
            raise UserError(
                f"{key} is empty: there is nothing to {what}",
                where=where,
                remedy="Name text files, Kaldi folders or manifests",
            )
    if (loaded.tokenizer.kind == "student") != bool(loaded.tokenizer.model):
        raise UserError(
            f"tokenizer.kind is {loaded.tokenizer.kind}, tokenizer.model '{loaded.tokenizer.model}'",
            where=where,
            remedy="Give `kind: student` a model, and no other kind",
        )
    if loaded.ngram.arpa and loaded.tokenizer.kind not in ("student", "words"):
        raise UserError(
            f"ngram.arpa with tokenizer.kind {loaded.tokenizer.kind}",
            where=where,
            remedy="Name the student whose pieces the file has: tokenizer: {kind: student, model: ...}; or kind: words",
        )


def _check_units(loaded: LmRecipe, where: str) -> None:
    units = loaded.units
    if bool(units.unit) != bool(units.alignments):
        raise UserError(
            f"units.unit is '{units.unit}', units.alignments '{units.alignments}'",
            where=where,
            remedy="Give both, or neither for a model over the text itself",
        )
    if not units.unit:
        return
    for key, value, right in (
        ("tokenizer.kind", loaded.tokenizer.kind, ("words",)),
        ("normaliser.spaces", loaded.normaliser.spaces, ("keep", "split")),
        ("init", loaded.init, ("",)),
    ):
        if value not in right:
            raise UserError(
                f"{key} is '{value}' of a model over {units.unit}s",
                where=where,
                remedy=f"Set {key}={' or '.join(right)}",
            )


def _check_model(loaded: LmRecipe, where: str) -> None:
    if loaded.init and loaded.kind != "masked":
        raise UserError(
            f"init is of masked models, kind is {loaded.kind}", where=where, remedy="Leave it out"
        )
    model = loaded.model
    if model.kind == "transformer" and (model.dim % model.heads):
        raise UserError(f"model.dim {model.dim} is not a multiple of model.heads {model.heads}", where=where)
    if not 3 <= loaded.batches.longest <= loaded.batches.pieces:
        raise UserError(
            f"batches.longest is {loaded.batches.longest}, batches.pieces {loaded.batches.pieces}",
            where=where,
            remedy="Choose 3 <= longest <= pieces",
        )
    prune = loaded.ngram.prune
    if prune != sorted(prune):
        raise UserError(
            f"ngram.prune is {list(prune)}", where=where, remedy="Choose thresholds that do not fall"
        )
