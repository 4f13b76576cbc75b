"""The schema of recipes: every key is a field of :class:`Recipe`, documented by the text below the field.

`config/loading.py` reads recipes, `config/checks.py` checks values against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from retort.common.errors import UserError
from retort.config.distill import RowConfig, TeacherConfig
from retort.config.kinds import named_of_kind, of_kind
from retort.config.ranges import (
    BILLION,
    MILLION,
    SEEDS,
    THREADS,
    check_ranges,
    choice,
    number,
    numbers,
    of_each,
)
from retort.config.student import StudentConfig


@dataclass
class AlignConfig:
    """Forced alignment of transcripts to senones: a flat-start monophone GMM-HMM, a phonetic decision tree, and a
    GMM-HMM of tied triphones.

    Raises:
        UserError: a value is out of range, or `states` and `subsampling` do not fit together.
    """

    senones: int = number(1000, 1, MILLION)
    """Maximum number of leaves of the decision tree; there are fewer if `minimum_frames` prevents further splits."""
    subsampling: int = number(1, 1, 4)
    """Number of 10 ms frames per label frame: 1, 3 (30 ms), or 4 (40 ms, two convolutions of stride 2). Tree,
    triphones and alignment use these frames; the monophones that initialise them always use frames of 10 ms."""
    states: int = number(3, 1, 3)
    """HMM states per phone in the tree: 3 for frames of 10 ms, 1 for longer frames, because a phone can be as short as
    30 ms."""
    monophone_passes: int = number(14, 1, 1000)
    """Passes of Viterbi training of the monophones over all utterances, after the flat start."""
    monophone_mixtures: int = number(4, 1, 1024)
    """Maximum number of Gaussians per monophone state, reached by doubling."""
    passes: int = number(10, 1, 1000)
    """Passes of Viterbi training of the tied triphones."""
    mixtures: int = number(8, 1, 1024)
    """Maximum number of Gaussians per tied triphone state (senone), reached by doubling."""
    minimum_frames: int = number(100, 1, BILLION)
    """Minimum number of frames of a leaf: splits of the tree that create a smaller leaf are not made."""
    silence_probability: float = number(0.5, 0, 1, above=True, below=True)
    """Prior probability of silence between two words and at both ends of an utterance."""
    misfit: float = number(8.0, 0, MILLION)
    """Threshold for transcripts that do not match their audio, in robust standard deviations of the alignment score
    from the median: utterances beyond it are excluded from the tree and from all later stages. 0 excludes none."""
    processes: int = number(0, 0, 1024)
    """Number of processes; 0 for one per core. The result does not depend on it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.states != (3 if self.subsampling == 1 else 1):
            raise UserError(
                f"{self.states} states a phone and subsampling {self.subsampling} do not go together",
                remedy="Give 3 states to frames of 10 ms and 1 to longer ones",
            )


@dataclass
class HybridConfig:
    """Lexicon, alignments and decoding graph of hybrid students (`student.kind: hybrid`)."""

    lexicon: list[str] = field(default_factory=list)
    """Pronunciation dictionaries in CMU format; for a word in several of them, the first one is used. Stress marks are
    removed."""
    pronounce: bool = True
    """Whether English words that are in no dictionary are taken from the dictionary of pocketsphinx, or otherwise
    pronounced by the rules of espeak-ng."""
    alignments: str = ""
    """Folder of the alignments; they are computed from `data.train` if it does not exist. Recipes of language models
    over senones or phones name the same folder. Empty: a folder inside the experiment."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Settings of the forced alignment."""
    lm: str = ""
    """Recipe of the n-gram model over words (`tokenizer.kind: words`) from which the decoding graph is built; it is
    trained first if it is missing."""
    silence_probability: float = number(0.5, 0, 1, above=True, below=True)
    """Probability of silence at the start and after every word in the decoding graph."""
    acoustic_scales: list[float] = numbers([0.05, 0.07, 0.1, 0.14, 0.2, 0.3], 0, 1000, above=True)
    """Acoustic scales tried on the validation data after training; the range is extended while the best one is the
    first or the last. The best one is stored with the model. Evaluations during training use the middle one. The
    defaults are for frames of 10 ms; longer frames are fewer and need larger scales."""


@dataclass
class SpokenConfig:
    """Speech synthesised from text: simple speech for a warm start, or sentences with words that the recordings lack.

    Speed perturbation (`augment.speeds`) is not applied to it.
    """

    language: str = choice("english", "mandarin")
    """Language of the synthesiser: `english` or `mandarin`."""
    voices: int = number(0, 0, 1000)
    """Number of voices of the language, used in turn; 0 for no synthesised speech. Kokoro has 28 English and 8
    Mandarin voices."""
    transcripts: bool = True
    """Whether the transcripts of training and validation data are synthesised and replace their recordings."""
    texts: list[str] = field(default_factory=list)
    """Text files with one sentence per line from which `sentences` are drawn for training; transcripts of the
    validation data are excluded."""
    sentences: int = number(0, 0, BILLION)
    """Number of sentences drawn at random from `texts`, among those whose number of words (of characters in Mandarin)
    is in the range `words`."""
    words: list[int] = numbers([3, 12], 1, 1000, length=2)
    """Range of the number of words (of characters in Mandarin) in a sentence drawn from `texts`."""
    rate: list[int] = numbers([140, 190], 80, 450, length=2)
    """Range of speaking rates in words per minute (espeak-ng)."""
    pitch: list[int] = numbers([35, 65], 0, 99, length=2)
    """Range of pitch on the scale of espeak-ng; 50 is the default pitch of a voice."""
    snr: list[float] = numbers([15.0, 30.0], -100, 100, length=2)
    """Range of signal-to-noise ratios in dB."""
    engine: str = choice("espeak", "kokoro")
    """Synthesiser: `espeak` (espeak-ng: fast, robotic) or `kokoro` (Kokoro-82M: natural, about half a core second per
    second of speech; needs `retort fetch kokoro-82m` and the extra `kokoro`)."""
    speed: list[float] = numbers([0.8, 1.2], 0.5, 2, length=2)
    """Range of speaking rates relative to the voice's default (Kokoro)."""
    mixes: float = number(0.5, 0, 1)
    """Share of the sentences spoken by an interpolation of two or three voices (Kokoro)."""
    check: str = "whisper-base"
    """Whisper model that transcribes the speech of Kokoro to check it; sentences that it does not recognise are
    discarded. Empty: no check."""
    worst: float = number(0.2, 0, 1)
    """Maximum error rate of that check (WER; in Mandarin the syllable error rate) at which a sentence is used."""
    processes: int = number(0, 0, 1024)
    """Number of processes that synthesise with Kokoro; 0 for one per core."""
    seed: int = number(1, 0, SEEDS)
    """Seed of the draw of sentences and of the synthesis. It is separate from `seed`, so that runs with different
    seeds are trained on the same speech."""


@dataclass
class DataConfig:
    """Data of training, validation and test. Each entry is a Kaldi folder or a lhotse manifest (`*.jsonl.gz`); of
    `train` also a folder of shards, local or at an address (`s3://...`, `https://...`).

    Relative paths are resolved from the working directory, then from the data roots (`corpora/open_cuts.py`).
    """

    train: list[Any] = field(default_factory=list)
    """Training data. An entry can also be `{source: ..., share: 0.3}`: this share of the audio of each batch is then
    taken from it, whatever its size; entries without a share supply the rest. Shares keep older data in the mix when a
    model is fine-tuned on new data. An epoch ends when the first entry is exhausted; the remaining data of the others
    is used in the next epoch."""
    shard_cache: float = number(50.0, 0, MILLION, above=True)
    """Gigabytes of local copies of the shards at an address, in `$RETORT_CACHE/shards`; the most recent ones are
    kept."""
    validation: list[str] = field(default_factory=list)
    """Validation data: selects the checkpoints; not used for training, and its error rates are not results."""
    test: list[str] = field(default_factory=list)
    """Test data; each entry is scored separately, once, after training. If the run has a `training.init`, the initial
    model is scored as well, which shows the gain on new data and the loss on old data."""
    spoken: SpokenConfig = field(default_factory=SpokenConfig)
    """Synthesised speech added to, or used in place of, the recordings."""

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
    """Text normalisation, the same in training, scoring and transcription."""

    form: str = choice("NFKC", "NFC", "NFD", "NFKD", "none")
    """Unicode normal form: `NFC`, `NFD`, `NFKC`, `NFKD` or `none`. NFKC also converts full-width characters to half
    width."""
    case: str = choice("upper", "lower", "keep")
    """`upper`, `lower` or `keep`."""
    punctuation: str = choice("drop", "keep")
    """Whether punctuation is removed: `drop` or `keep`."""
    kept: str = "'"
    """Punctuation characters that are not removed by `punctuation: drop`."""
    spaces: str = choice("keep", "drop", "split")
    """`keep` (consecutive spaces become one), `drop` (for scripts without spaces), or `split`: add a space on both
    sides of every CJK character, which makes each one a word, for language models of decoding graphs."""
    homophones: str = choice("keep", "fold")
    """`keep`, or `fold`: Chinese characters with the same pronunciation, ignoring the tone, are replaced by one of
    them (`text/homophones.py`). It is for warm starts: in a student with all characters that is initialised from such
    a model, each character takes the parameters of its replacement."""


@dataclass
class TokenizerConfig:
    """Tokenizer of the student."""

    kind: str = choice("characters", "bpe", "teacher", "whisper", "init")
    """`characters`; `bpe` (sentencepiece); `teacher` (those tokens of the teacher that occur in the training text);
    `whisper` (Whisper's tokenizer); or `init` (the tokenizer of `training.init` or `training.warm_start`, so that all
    weights of that model can be used)."""
    size: int | None = number(None, 5, 10 * MILLION)
    """Size of the vocabulary, including the four special ids. Required for `bpe`. For `whisper`, a reduced vocabulary
    (the tokens of the training text and the most frequent others); all tokens if it is not given. For other kinds it
    is given so that `retort info` needs no data."""
    teacher: str = ""
    """For `teacher`: key in `teachers` of the teacher whose tokenizer is used."""
    model: str = ""
    """For `whisper`: name or folder of the Whisper model; `student.encoder.model` by default."""
    texts: list[str] = field(default_factory=list)
    """For `whisper` with a `size`: text files with one sentence per line, whose most frequent tokens fill the vocabulary
    after those of the training text. Without such files, the first tokens of Whisper's tokenizer fill it."""
    language: str = "en"
    """For `whisper`: language code in the decoder's prompt. English-only models ignore it."""


@dataclass
class FeatureConfig:
    """Input features, one frame every 10 ms: base class of their kinds, which are declared with their extractors."""

    kind: str = ""
    """Kind of the features."""

    @property
    def bins(self) -> int:
        """Number of values of a frame."""
        raise NotImplementedError

    @property
    def sampling_rate(self) -> int:
        """Sampling rate in Hz; audio with another rate is resampled."""
        return 16000

    @property
    def cmvn(self) -> bool:
        """Whether mean and variance are normalised after the extraction."""
        return False

    @property
    def statistics(self) -> str:
        """What the normalisation is computed from: `utterance`, or `running` (the frames so far)."""
        return "utterance"

    @property
    def streams(self) -> bool:
        """Whether a frame depends on no later frames."""
        return False

    @property
    def pad_seconds(self) -> float:
        """Duration to which shorter audio is padded with silence."""
        return 0.0

    @property
    def storage(self) -> str:
        """`disk` (extracted once), or `online` (extracted from the audio in every epoch)."""
        return "online"


@dataclass
class AugmentConfig:
    """Data augmentation of the training data: speed perturbation, noise and SpecAugment."""

    speeds: list[float] = numbers([1.0], 0.1, 10)
    """Speed factors; every epoch contains each utterance once at each of them."""
    noise: list[str] = field(default_factory=list)
    """Manifests or Kaldi folders of noise that is added to the audio; requires `features.storage: online`."""
    noise_probability: float = number(0.5, 0, 1)
    """Probability that noise is added to an utterance."""
    noise_snr: list[float] = numbers([10.0, 20.0], -100, 100, length=2)
    """Range of signal-to-noise ratios in dB."""
    frequency_masks: int = number(2, 0, 1000)
    """Number of frequency masks per utterance."""
    frequency_width: int = number(27, 0, 4096)
    """Width of a frequency mask in bins: uniform in [0, `frequency_width`)."""
    time_masks: int = number(2, 0, 1000)
    """Number of time masks per utterance."""
    time_width: int = number(50, 0, MILLION)
    """Width of a time mask in frames: uniform in [0, `time_width`), and limited by `time_share`."""
    time_share: float = number(1.0, 0, 1)
    """Maximum width of a time mask as a share of the utterance."""


@dataclass
class BatchConfig:
    """Batches of the training data."""

    seconds: float = number(60.0, 0, MILLION, above=True)
    """Duration of the audio in a batch in seconds, including padding."""
    buckets: int = number(10, 1, 10_000)
    """Number of buckets of utterances of similar duration from which batches are drawn."""
    workers: int = number(0, 0, 256)
    """Number of data loading processes; 0 loads the data in the training process."""
    minimum_seconds: float = number(0.1, 0, MILLION)
    """Shorter training utterances are skipped and counted."""
    maximum_seconds: float = number(40.0, 0, MILLION, above=True)
    """Longer training utterances are skipped and counted."""


@dataclass
class LoopConfig:
    """Settings of every training, of recognisers and of language models."""

    steps: int = number(1000, 1, BILLION)
    """Number of updates."""
    optimiser: str = choice("adamw", "scaled_adam")
    """`adamw`, or `scaled_adam` (ScaledAdam of the Zipformer): its updates are proportional to the scale of a
    parameter, so `peak_lr` is larger, such as 0.045; it has no `weight_decay`."""
    schedule: str = choice("tri_stage", "cosine", "eden")
    """`tri_stage` (linear warm-up, constant, exponential decay), `cosine` (linear warm-up, cosine to zero) or `eden`
    (the schedule of ScaledAdam: short warm-up from half the peak, then decay with updates and epochs)."""
    peak_lr: float = number(3e-4, 0, BILLION)
    """Maximum learning rate."""
    floor_share: float = number(0.01, 0, 1)
    """For `tri_stage`: learning rate at the start and at the end as a share of the peak."""
    warmup_steps: int = number(100, 0, BILLION)
    """Number of updates of the warm-up."""
    hold_steps: int = number(0, 0, BILLION)
    """For `tri_stage`: number of updates at the peak learning rate after the warm-up."""
    eden_steps: float = number(7500.0, 0, BILLION, above=True)
    """For `eden`: number of updates after which the factor of updates has fallen to 0.84."""
    eden_epochs: float = number(3.5, 0, BILLION, above=True)
    """For `eden`: number of epochs after which the factor of epochs has fallen to 0.84; both factors are
    multiplied."""
    betas: list[float] = numbers([0.9, 0.999], 0, 1, below=True, length=2)
    """Coefficients of the optimiser's running averages of the gradient and of its square."""
    weight_decay: float = number(0.01, 0, 1000)
    """Weight decay of AdamW."""
    clip: float = number(1.0, 0, BILLION, above=True)
    """Maximum norm of the gradient of the student; larger gradients are scaled to it. The projections of rows are not
    included."""
    accumulation: int = number(1, 1, MILLION)
    """Number of batches whose gradients are accumulated for one update."""
    precision: str = choice("auto", "fp32", "bf16", "fp16")
    """`fp32`, `bf16`, `fp16` (GPU only), or `auto`: `bf16` if the device has instructions for it, otherwise `fp32`.
    On a CPU without such instructions `bf16` is emulated and tens of times slower than `fp32`."""
    device: str = choice("auto", "cpu")
    """`auto` (a GPU if there is one) or `cpu`."""
    threads: int = number(1, 1, THREADS)
    """Number of CPU threads of each process."""
    evaluate_steps: int = number(500, 1, BILLION)
    """Number of updates between evaluations on the validation data; a recogniser decodes them without the
    reference."""
    log_steps: int = number(10, 1, BILLION)
    """Number of updates between log entries."""
    checkpoint_minutes: float = number(10.0, 0, MILLION)
    """Minutes between checkpoints: an interrupted run loses at most this time."""
    checkpoints: int = number(5, 1, 1000)
    """Number of checkpoints (selected by `keep`) that are averaged to the final model; 1 uses a single one."""
    keep: str = choice("best", "last")
    """Which checkpoints are averaged: `best` (lowest validation error; for language models the lowest loss) or
    `last`."""
    stored: str = choice("float32", "int8", "int4")
    """How `retort release --weights` will store the weights. With `int8` or `int4`, training and evaluation compute with
    the weights as they will be stored, so that training compensates for the rounding (quantisation-aware training)."""


@dataclass
class LoraConfig:
    """Low-rank adapters (LoRA): in the parts named, only small matrices added to the linear layers are trained.
    Requires the extra `lora`."""

    parts: list[str] = field(default_factory=list)
    """Parts of the student, as prefixes of parameter names, such as `[encoder]`; empty for no adapters. All other
    parameters of these parts are frozen; parts that are not named are trained as usual."""
    rank: int = number(8, 1, 4096)
    """Rank of the adapters."""
    alpha: float = number(16.0, 0, 1e6, above=True)
    """The output of an adapter is multiplied by alpha / rank."""
    dropout: float = number(0.0, 0, 1, below=True)
    """Dropout probability on the input of the adapters."""


@dataclass
class TrainingConfig(LoopConfig):
    """Training of a recogniser: the settings of :class:`LoopConfig`, initialisation, and frozen parts."""

    init: str = ""
    """Experiment whose weights initialise the student; tensors that do not fit are listed."""
    warm_start: str = ""
    """Recipe of a model that is used as `init`, and trained first if it is missing."""
    init_parts: list[str] = field(default_factory=list)
    """Parts that are initialised from `init` or `warm_start`, such as `[encoder, ctc]`; empty for all tensors that
    fit."""
    stored_layers: int = number(0, 0, 1000)
    """Number of lower encoder layers that are frozen and computed only once per utterance and speed: their outputs are
    stored in `exp/cache/hidden` (float16) and are the input of the next layer in training. SpecAugment is then applied
    to the stored frames. 0 computes all layers in every update."""
    allow: list[str] = field(default_factory=list)
    """Permits what is otherwise an error. `new_output`: the initial model may have another vocabulary; its output
    layer is then not used, and the student's output layer is initialised randomly. `retort train --allow` adds to this
    list."""
    freeze: list[str] = field(default_factory=list)
    """Parts of the student that are not trained, as prefixes of parameter names, such as `encoder.frontend`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""
    rates: dict[str, float] = of_each({}, 0, 1000)
    """Factors of the learning rate for parts of the student, such as `{encoder: 0.3}` for a part that is already
    trained while others are new; 1 by default."""

    def __post_init__(self) -> None:
        self.rates = {part: share for part, share in self.rates.items() if share != 1.0}


@dataclass
class TextInjectionConfig:
    """Text injection: the decoder of a CIF student is trained on text as well. A sentence becomes a pseudo-utterance of
    encoder frames and fired embeddings that are taken from training speech, sound by sound."""

    texts: list[str] = field(default_factory=list)
    """Text files with one sentence per line, Kaldi folders or manifests; without texts there is no text injection.
    Sentences that are transcripts of the validation data are excluded. The texts must not contain test data."""
    share: float = number(0.5, 0, 1000, above=True)
    """Number of tokens of text in an update, relative to that of the training speech."""
    weight: float = number(0.5, 0, MILLION)
    """Weight of the decoder's loss on text. The loss is the mean over the tokens of the text that goes with a batch,
    whatever `share` is; as long as fewer sentences are usable than `share` asks for, it is as much smaller."""
    noise: float = number(0.3, 0, 100)
    """Standard deviation of the Gaussian noise that is added to frames and fired embeddings, relative to that of the values
    of each vector."""
    mask: float = number(0.1, 0, 1)
    """Probability that the frames and fired embeddings of a sound are replaced by zeros, so that only the sentence
    determines its tokens. With 1, all of them are (internal language model training), and no sentence is skipped for want
    of an example."""
    sounds: str = choice("token", "pinyin", "pinyin_without_tones")
    """Which tokens share examples: `token` (each has its own), `pinyin` (Chinese characters with the same syllable and
    tone, however many tokens spell them) or `pinyin_without_tones`; both require the extra `mandarin`."""
    examples: int = number(8, 1, 10_000)
    """Maximum number of examples of a sound; later ones replace earlier ones. Sentences with a sound without an example
    are skipped."""
    longest: int = number(50, 1, 100_000)
    """Maximum number of frames of an example; longer ones, which contain pauses, are not used."""
    tokens: list[int] = numbers([3, 40], 1, 10_000, length=2)
    """Range of the number of tokens of a sentence."""


@dataclass
class Recipe:
    """A recipe: the configuration of one experiment."""

    name: str = MISSING
    """Name of the experiment, whose folder is `exp/NAME`."""
    system: str = "cif"
    """Name of the system in `results/*.json`."""
    seed: int = number(1, 0, SEEDS)
    """Seed of initialisation, data order, augmentation and dropout."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training, validation and test data."""
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)
    """Text normalisation."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Tokenizer of the student."""
    features: FeatureConfig = of_kind("features", "fbank")
    """Input features."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Data augmentation."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """Batches of the training data."""
    student: StudentConfig = of_kind("student", "cif")
    """Architecture of the recogniser and weights of its losses."""
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    """Lexicon, alignments and decoding graph of hybrid students."""
    teachers: dict[str, TeacherConfig] = named_of_kind("teacher", "masked_lm")
    """Teachers by name; the names are used in `distill` and `tokenizer.teacher`."""
    distill: list[RowConfig] = field(default_factory=list)
    """Rows of distillation; each adds a loss to the student's own."""
    text_injection: TextInjectionConfig = field(default_factory=TextInjectionConfig)
    """Training of the decoder on text without audio."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation, checkpoints and initialisation."""
