"""The recipe of a language model, as `retort lm train` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from omegaconf import MISSING

from retort.common.errors import UserError
from retort.config.loading import read_recipe
from retort.config.ranges import BILLION, MILLION, SEEDS, WIDEST, choice, choose, number, numbers
from retort.config.schema import LoopConfig, NormaliserConfig


@dataclass
class TextConfig:
    source: str = MISSING
    """A text file (plain, `.gz`, `.xz`) with one sentence per line, or a Kaldi folder or manifest, whose
    transcripts are used."""
    repeat: int = number(1, 1, MILLION)
    """Repetitions per epoch, for a small text together with a large one."""


@dataclass
class PieceConfig:
    kind: str = "wordpiece"
    """Tokenizer. Masked models: `wordpiece`, trained on the text, with BERT's special tokens, or `words`.
    Other models: `student` (the tokenizer of `model`), or trained on the text: `characters`, `bpe`
    (sentencepiece) or `words`. With `units` it is `words`, the symbols of the unit."""
    model: str = ""
    """For `student`: name of an experiment, or folder of an experiment, a model or a release."""
    size: int = number(8000, 5, 10 * MILLION)
    """Maximum vocabulary size including special tokens; a small text gives fewer. For `bpe` the exact size."""


@dataclass
class UnitConfig:
    """Units of the language model other than text: sentences are converted to phones or senones with a lexicon."""

    unit: str = choice("", "senone", "phone")
    """Empty: text. `senone` or `phone`: the units of an alignment, without silences."""
    alignments: str = ""
    """Folder of alignments (`retort.alignment.store`), which provides the tree of phones and senones and the
    pronunciations of the words in it."""
    lexicon: list[str] = field(default_factory=list)
    """Further lexicons, in CMU dictionary format, for words that are not in the first one. Paths as in `text`."""
    pronounce: bool = False
    """English only: words that are not in the lexicons get pronunciations from pocketsphinx's dictionary, if
    it is installed, or from espeak-ng. Otherwise, and where these fail, a sentence with such a word is left
    out."""
    sample: bool = False
    """For words with several pronunciations, whether one is drawn at random (with `seed`) or the first is used."""


@dataclass
class ModelConfig:
    """Architecture of a neural model."""

    kind: str = "transformer"
    """`transformer`, or for causal models `lstm` with layers of width `dim`."""
    layers: int = number(6, 1, 1000)
    dim: int = number(256, 1, WIDEST)
    heads: int = number(4, 1, 1024)
    feedforward: int = number(1024, 1, WIDEST)
    dropout: float = number(0.1, 0, 1, below=True)


@dataclass
class NgramConfig:
    order: int = number(4, 1, 20)
    """Order of the longest n-grams."""
    prune: list[int] = numbers([], 0, BILLION)
    """Count thresholds for n-grams of order 2, 3, ...: n-grams with this count or less are left out; the last
    value applies to all higher orders. Empty: no pruning."""
    arpa: str = ""
    """An ARPA file (or `.gz`) over the same tokens, or with `tokenizer.kind: words` over its own words, that
    is used instead of estimation."""


@dataclass
class PieceBatchConfig:
    pieces: int = number(4096, 3, MILLION)
    """Maximum number of tokens per batch, including padding."""
    longest: int = number(128, 3, MILLION)
    """Maximum length of a sentence including its two special tokens; longer ones are truncated. A masked
    model that is trained from scratch has this number of positions."""


@dataclass
class LmTrainingConfig(LoopConfig):
    checkpoints: int = number(1, 1, 1000)
    betas: list[float] = numbers([0.9, 0.98], 0, 1, below=True, length=2)
    masking: float = number(0.15, 0, 1, above=True, below=True)
    """Masked models: fraction of tokens that are predicted; 80 % of them are masked, 10 % replaced, 10 %
    unchanged (BERT)."""


@dataclass
class SoftLabelConfig:
    """Distillation of a larger language model into the one that is trained."""

    model: str = ""
    """Causal models: experiment of `retort lm train` (kind causal or ngram, with the same tokens) whose distributions of
    the next token are soft labels; empty: hard labels only."""
    weight: float = number(0.5, 0, 1)
    """Weight of the soft labels; that of the hard labels is 1 minus this one."""
    temperature: float = number(1.0, 0, 100, above=True)
    """Temperature of both distributions. The loss is multiplied by its square (Hinton et al. 2015)."""


@dataclass
class LmRecipe:
    kind: str = choice("masked", "causal", "ngram")
    """`masked` (as BERT), `causal` (predicts the next token) or `ngram` (interpolated modified Kneser-Ney)."""
    name: str = MISSING
    """The experiment is `exp/NAME`."""
    seed: int = number(1, 0, SEEDS)
    text: list[TextConfig] = field(default_factory=list)
    """Training text, without the sentences of `held_out`. Paths as in `data.train` of a recogniser."""
    held_out: list[str] = field(default_factory=list)
    """Validation text; sources as in `text`."""
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)
    units: UnitConfig = field(default_factory=UnitConfig)
    init: str = ""
    """Masked models: Hugging Face name or folder of the encoder to fine-tune, with its own tokenizer; empty:
    training from scratch."""
    tokenizer: PieceConfig = field(default_factory=PieceConfig)
    """Only for training from scratch."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Only for training from scratch."""
    soft_labels: SoftLabelConfig = field(default_factory=SoftLabelConfig)
    ngram: NgramConfig = field(default_factory=NgramConfig)
    """N-gram models; these ignore `model`, `training` and all of `batches` except `longest`."""
    batches: PieceBatchConfig = field(default_factory=PieceBatchConfig)
    training: LmTrainingConfig = field(default_factory=LmTrainingConfig)


OF_A_KIND: dict[str, dict[str, tuple[str, ...]]] = {
    "masked": {"tokenizer.kind": ("wordpiece", "words"), "model.kind": ("transformer",)},
    "causal": {
        "tokenizer.kind": ("student", "characters", "bpe", "words"),
        "model.kind": ("transformer", "lstm"),
    },
    "ngram": {"tokenizer.kind": ("student", "characters", "bpe", "words")},
}


def load_lm_recipe(recipe: str, overrides: Sequence[str] = ()) -> LmRecipe:
    """Load a language model's recipe by name or path, with `a.b=c` overrides.

    Raises:
        UserError: there is no such recipe, a key is unknown, or a value is invalid or inconsistent with
            another.
    """
    loaded = read_recipe(LmRecipe, recipe, overrides)
    for key, allowed in OF_A_KIND[loaded.kind].items():
        choose(key, attrgetter(key)(loaded), allowed, recipe)
    _check_text(loaded, recipe)
    _check_units(loaded, recipe)
    _check_model(loaded, recipe)
    return loaded


def _check_text(loaded: LmRecipe, where: str) -> None:
    for key, what in (("text", "train on"), ("held_out", "validate on")):
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
            remedy="Set tokenizer.model for `kind: student`, and for no other kind",
        )
    if loaded.ngram.arpa and loaded.tokenizer.kind not in ("student", "words"):
        raise UserError(
            f"ngram.arpa with tokenizer.kind {loaded.tokenizer.kind}",
            where=where,
            remedy="Set the student whose tokens the file has: tokenizer: {kind: student, model: ...}; or kind: words",
        )


def _check_units(loaded: LmRecipe, where: str) -> None:
    units = loaded.units
    if bool(units.unit) != bool(units.alignments):
        raise UserError(
            f"units.unit is '{units.unit}', units.alignments '{units.alignments}'",
            where=where,
            remedy="Set both, or neither for a model over text",
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
                f"{key} is '{value}', but the model is over {units.unit}s",
                where=where,
                remedy=f"Set {key}={' or '.join(right)}",
            )


def _check_model(loaded: LmRecipe, where: str) -> None:
    if loaded.init and loaded.kind != "masked":
        raise UserError(
            f"init applies to masked models, but kind is {loaded.kind}", where=where, remedy="Leave it out"
        )
    if loaded.soft_labels.model and loaded.kind != "causal":
        raise UserError(
            f"soft_labels applies to causal models, but kind is {loaded.kind}",
            where=where,
            remedy="Leave it out",
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
            f"ngram.prune is {list(prune)}", where=where, remedy="Choose non-decreasing thresholds"
        )
