"""What a recipe may say of a student: front end, encoder, and what stands behind it. The text under a field is its
documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retort.config.ranges import BILLION, MILLION, WIDEST, number, numbers


@dataclass
class FrontendConfig:
    kind: str = "conv2d"
    """`conv2d` (over time and bins, as the reference) or `frames` (over time alone, at any whole share of the rate)."""
    channels: int = number(128, 1, 8192)
    layers: int = number(1, 1, 2)
    """Of `conv2d`, convolutions of stride 2 (1 or 2); each halves the frame rate."""
    stride: int = number(1, 1, 100)
    """Of `frames`, feature frames to one of the output: 1 for 10 ms, 3 for 30 ms."""


@dataclass
class ZipformerConfig:
    """Sizes of a Zipformer, a number for each of its stacks; the defaults are those of the published Zipformer-M."""

    blocks: list[int] = numbers([2, 2, 3, 4, 3, 2], 1, 100)
    downsampling: list[int] = numbers([1, 2, 4, 8, 4, 2], 1, 1000)
    """Frames of the front end to one of the stack; 1 leaves the rate as it is."""
    dims: list[int] = numbers([192, 256, 384, 512, 384, 256], 4, WIDEST)
    """Channels, multiples of 4. The largest is the encoder's `dim`."""
    heads: list[int] = numbers([4, 4, 4, 8, 4, 4], 1, 1024)
    feedforward: list[int] = numbers([512, 768, 1024, 1536, 1024, 768], 4, WIDEST)
    """Of the second of a block's three feed-forwards, a multiple of 4; the first has 3/4, the third 5/4 of it."""
    kernels: list[int] = numbers([31, 31, 15, 15, 15, 31], 1, 1001)
    """Depthwise convolutions, frames of the stack, odd."""
    query_dim: int = number(32, 1, WIDEST)
    """Of queries and keys, a head."""
    value_dim: int = number(12, 1, WIDEST)
    """Of values, a head."""
    position_dim: int = number(4, 1, WIDEST)
    """Of what is compared with distances, a head."""
    table_dim: int = number(48, 2, WIDEST)
    """Of the sinusoids of a distance, even."""
    straight_steps: int = number(20000, 0, BILLION)
    """First updates of a training in which every block and stack gives at least 0.9 of what it computes, the rest being
    its input; later it is at least 0.2. 0 where a model is trained on."""


@dataclass
class EncoderConfig:
    kind: str = "conformer"
    """`conformer`, `transformer`, `tdnnf` (factorised convolutions over time; of what follows it reads `layers`, `dim`,
    `dropout`, `bottleneck`, `dilations` and `pool_after`), `branchformer` (attention beside a gated convolution; no
    `feedforward`), `e_branchformer` (the same between two feed-forwards), `zipformer` (its layers are the stacks of
    `zipformer`; of the rest it reads `layers`, `dim`, `dropout`, `attention_dropout` and `pool_after`) or `pretrained`: a
    `model` with a front end and dropout of its own, whose width is `dim`. Models that read `features.kind: wave` count as
    one layer (`layers: 1`); of a Whisper, a w2v-BERT 2.0 or a Parakeet the first `layers` are taken, and `pool_after`
    is a mean with learned weights."""
    model: str = ""
    """Of `pretrained`: Hugging Face name, folder or name of `retort fetch`: a wav2vec 2.0, HuBERT, WavLM, UniSpeech,
    Whisper, w2v-BERT 2.0 or Parakeet. Its weights are what training starts from."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """The configuration of that model, filled in when it is opened, so that a trained model needs nothing else."""
    layers: int = number(15, 0, 1000)
    dim: int = number(256, 1, WIDEST)
    heads: int = number(4, 1, 1024)
    feedforward: int = number(2048, 1, WIDEST)
    kernel: int = number(15, 1, 1001)
    """Depthwise convolution of the Conformer, frames."""
    convolution_norm: str = "batch"
    """Behind that convolution: `batch` (as the reference) or `layer`. With batches of few utterances the running
    statistics of `batch` are so far from each batch's own that CIF fires too much or too little in evaluation."""
    positions: str = "relative"
    """`relative` (Transformer-XL, as the reference) or `rotary` (faster on a CPU)."""
    dropout: float = number(0.1, 0, 1, below=True)
    attention_dropout: float = number(0.1, 0, 1, below=True)
    """On attention weights; 0 lets a fused kernel compute attention, much faster on a CPU."""
    bottleneck: int = number(128, 1, WIDEST)
    """Of TDNN-F layers: the width between the two factors of a convolution, at most 2 x dim."""
    dilations: list[int] = numbers([1], 1, 1000)
    """Of TDNN-F layers: how many frames to each side they hear, one layer after the other; the last number holds for all
    further layers."""
    cgmlp: int = number(1536, 2, WIDEST)
    """Of Branchformers: the width of the cgMLP before its gate halves it; 6 x dim in the papers' large models."""
    cgmlp_kernel: int = number(31, 1, 1001)
    """Of Branchformers: the depthwise convolution of that gate, frames."""
    merge: str = "concat"
    """Of `branchformer`, how the branches are joined: `concat` (with a linear layer) or `average` (with weights that are
    learned, a pair an utterance)."""
    merge_kernel: int = number(31, 1, 1001)
    """Of `e_branchformer`: the depthwise convolution over the joined branches, frames."""
    zipformer: ZipformerConfig = field(default_factory=ZipformerConfig)
    pool_after: list[int] = numbers([5, 10], 1, 1000)
    """Max pooling over two frames after these layers, counted from 1; of a Zipformer a mean with learned weights."""


@dataclass
class CifConfig:
    kernel: int = number(3, 1, 1001)
    """Of the convolution that estimates the weights, frames."""
    activation: str = "none"
    """Behind that convolution: `none` (as the reference) or `relu`."""
    dropout: float = number(0.2, 0, 1, below=True)
    context_layers: int = number(0, 0, 1000)
    """Layers of the encoder's kind over the fired embeddings, so that what was heard in a neighbour's share is found
    there. The tap `acoustic` is behind them."""
    fires: str = "accumulate"
    """`accumulate` integrates estimated weights (the published method). `ctc` fires the encoder frame at each peak of the
    CTC head, and the last frame for the end of the sentence: in training the frames of the best path through the
    reference, in decoding those of the best path of all (ours; no weights are estimated)."""
    tail: float = number(0.5, 0, 1)
    """What remains after the last full token is a token if it weighs more than this (evaluation)."""
    spare: int = number(0, 0, 1000)
    """In decoding, so many more fires of the last frame follow the last one, for a `whisper` decoder, which ends a sentence
    by itself: where CIF fires too few tokens, no words are lost. With it the end of a hypothesis costs once."""


@dataclass
class DecoderConfig:
    kind: str = "autoregressive"
    """`autoregressive` (token by token, as the reference), `parallel` (all at once: Paraformer, Gao et al. 2022) or
    `whisper`: the decoder of the Whisper that the encoder is of, with its tokenizer, one step for each fire. Of the options
    below a `whisper` decoder reads `window` and `history_dropout` alone (ours)."""
    cross_attention: bool = True
    """Whether a `parallel` decoder also reads the encoder's output."""
    glancing: float = number(0.75, 0, 1)
    """Of a `parallel` decoder in training: how many tokens it is shown, as a share of those that it gets wrong by itself."""
    window: int = number(0, 0, 1000)
    """For a CIF student: how many encoder frames to each side of a token's fire an `autoregressive` decoder's hidden state
    attends to, none with 0, as the reference; for a `whisper` decoder the same, all frames with 0."""
    layers: int = number(2, 0, 1000)
    dim: int = number(256, 1, WIDEST)
    heads: int = number(4, 1, 1024)
    feedforward: int = number(2048, 1, WIDEST)
    dropout: float = number(0.2, 0, 1, below=True)
    embedding_dropout: float = number(0.1, 0, 1, below=True)
    history_dropout: float = number(0.0, 0, 1, below=True)
    """Share of the tokens before that the decoder reads as unknown while it trains, so that it listens to the
    fired embeddings instead of guessing from a history that will have errors at run time."""
    output: str = "own"
    """Output layer: `own`, or `plm`: the input embeddings of the model whose pieces the tokens are (`tokenizer.kind:
    teacher`), behind a projection to their width and with a bias. They learn unless `training.freeze` names
    `decoder.vocabulary.weight`."""
    output_dim: int | None = number(None, 1, WIDEST)
    """Width of those embeddings; stated for `plm`, so that neither `info` nor the trained model needs the PLM."""
    init: str = ""
    """Encoder of BERT's kind, by name or folder, whose layers these layers start from; dims and heads must be its own."""
    init_layers: list[int] = numbers([], -1000, 1000)
    """Which of its layers, counted from 1, or from -1 for the last; empty takes the first ones."""


@dataclass
class TransducerConfig:
    """What stands behind the encoder of a transducer, which reads `ctc_weight` as well; 0 is no CTC head."""

    predictor: str = "stateless"
    """`stateless` (a convolution over the last tokens) or `lstm`."""
    context: int = number(2, 1, 1000)
    """Of `stateless`: how many tokens it knows."""
    layers: int = number(1, 1, 1000)
    """Of `lstm`."""
    dim: int = number(512, 1, WIDEST)
    """Of the prediction network."""
    joiner_dim: int = number(512, 1, WIDEST)
    """Time and memory of training grow with it, frames times tokens."""
    dropout: float = number(0.1, 0, 1, below=True)
    """In the prediction network."""
    monotonic: bool = False
    """Whether the loss allows one token a frame at most, too, as decoding does by default."""
    symbols: int = number(1, 1, 1000)
    """Most tokens that greedy decoding takes from one frame; a beam takes one."""
    weight: float = number(1.0, 0, MILLION)
    """Of its loss."""


@dataclass
class StudentConfig:
    kind: str = "cif"
    """`cif`; `hybrid`: an encoder that says which senone every frame is; `ctc`: an encoder and a CTC head;
    `attention`: these two and a decoder with attention to the frames; `transducer`; or `whisper`: Whisper's encoder
    (`encoder.kind: pretrained`) with its own decoder, which has no dropout and of `decoder` reads `history_dropout` only,
    and with `ctc_weight` above 0 a CTC head over the bytes of the text."""
    faithful: bool = False
    """The reference's architecture (input projection, relative positions) and EOS handling (EOS is a CTC
    label, `zero_infinity` off)."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cif: CifConfig = field(default_factory=CifConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    label_smoothing: float = number(0.1, 0, 1, below=True)
    ce_weight: float = number(1.0, 0, MILLION)
    ctc_weight: float = number(0.5, 0, MILLION)
    quantity_weight: float = number(1.0, 0, MILLION)
    alignment_weight: float = number(0.0, 0, MILLION)
    """Weight of the loss that keeps each token's share of the CIF weights where the CTC head has the token; with a
    `whisper` decoder where its attention has it (ours)."""

    @property
    def has_whisper_decoder(self) -> bool:
        """Whether the decoder is that of a Whisper."""
        return self.kind == "whisper" or (self.kind == "cif" and self.decoder.kind == "whisper")


STUDENT_CHOICES: dict[str, tuple[str, ...]] = {
    "student.kind": ("cif", "hybrid", "ctc", "attention", "transducer", "whisper"),
    "student.transducer.predictor": ("stateless", "lstm"),
    "student.frontend.kind": ("conv2d", "frames"),
    "student.cif.activation": ("none", "relu"),
    "student.cif.fires": ("accumulate", "ctc"),
    "student.decoder.kind": ("autoregressive", "parallel", "whisper"),
    "student.decoder.output": ("own", "plm"),
    "student.encoder.kind": (
        "conformer",
        "transformer",
        "tdnnf",
        "branchformer",
        "e_branchformer",
        "zipformer",
        "pretrained",
    ),
    "student.encoder.merge": ("concat", "average"),
    "student.encoder.positions": ("relative", "rotary"),
    "student.encoder.convolution_norm": ("batch", "layer"),
}
