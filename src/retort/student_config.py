"""What a recipe may say of a student: front end, encoder, and what stands behind it. The text under a field is its
documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FrontendConfig:
    kind: str = "conv2d"
    """`conv2d` (over time and bins, as the reference) or `frames` (over time alone, at any whole share of the rate)."""
    channels: int = 128
    layers: int = 1
    """Of `conv2d`, convolutions of stride 2 (1 or 2); each halves the frame rate."""
    stride: int = 1
    """Of `frames`, feature frames to one of the output: 1 for 10 ms, 3 for 30 ms."""


@dataclass
class ZipformerConfig:
    """Sizes of a Zipformer, a number for each of its stacks; the defaults are those of the published Zipformer-M."""

    blocks: list[int] = field(default_factory=lambda: [2, 2, 3, 4, 3, 2])
    downsampling: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 4, 2])
    """Frames of the front end to one of the stack; 1 leaves the rate as it is."""
    dims: list[int] = field(default_factory=lambda: [192, 256, 384, 512, 384, 256])
    """Channels, multiples of 4. The largest is the encoder's `dim`."""
    heads: list[int] = field(default_factory=lambda: [4, 4, 4, 8, 4, 4])
    feedforward: list[int] = field(default_factory=lambda: [512, 768, 1024, 1536, 1024, 768])
    """Of the second of a block's three feed-forwards, a multiple of 4; the first has 3/4, the third 5/4 of it."""
    kernels: list[int] = field(default_factory=lambda: [31, 31, 15, 15, 15, 31])
    """Depthwise convolutions, frames of the stack, odd."""
    query_dim: int = 32
    """Of queries and keys, a head."""
    value_dim: int = 12
    """Of values, a head."""
    position_dim: int = 4
    """Of what is compared with distances, a head."""
    table_dim: int = 48
    """Of the sinusoids of a distance, even."""
    straight_steps: int = 20000
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
    """Of `pretrained`: Hugging Face name or folder of a wav2vec 2.0, HuBERT, WavLM, UniSpeech, Whisper, w2v-BERT 2.0 or
    Parakeet. Its weights are what training starts from."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """The configuration of that model, filled in when it is opened, so that a trained model needs nothing else."""
    layers: int = 15
    dim: int = 256
    heads: int = 4
    feedforward: int = 2048
    kernel: int = 15
    """Depthwise convolution of the Conformer, frames."""
    convolution_norm: str = "batch"
    """Behind that convolution: `batch` (as the reference) or `layer`. With batches of few utterances the running
    statistics of `batch` are so far from each batch's own that CIF fires too much or too little in evaluation."""
    positions: str = "relative"
    """`relative` (Transformer-XL, as the reference) or `rotary` (faster on a CPU)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    """On attention weights; 0 lets a fused kernel compute attention, much faster on a CPU."""
    bottleneck: int = 128
    """Of TDNN-F layers: the width between the two factors of a convolution, at most 2 x dim."""
    dilations: list[int] = field(default_factory=lambda: [1])
    """Of TDNN-F layers: how many frames to each side they hear, one layer after the other; the last number holds for all
    further layers."""
    cgmlp: int = 1536
    """Of Branchformers: the width of the cgMLP before its gate halves it; 6 x dim in the papers' large models."""
    cgmlp_kernel: int = 31
    """Of Branchformers: the depthwise convolution of that gate, frames."""
    merge: str = "concat"
    """Of `branchformer`, how the branches are joined: `concat` (with a linear layer) or `average` (with weights that are
    learned, a pair an utterance)."""
    merge_kernel: int = 31
    """Of `e_branchformer`: the depthwise convolution over the joined branches, frames."""
    zipformer: ZipformerConfig = field(default_factory=ZipformerConfig)
    pool_after: list[int] = field(default_factory=lambda: [5, 10])
    """Max pooling over two frames after these layers, counted from 1; of a Zipformer a mean with learned weights."""


@dataclass
class CifConfig:
    kernel: int = 3
    """Of the convolution that estimates the weights, frames."""
    activation: str = "none"
    """Behind that convolution: `none` (as the reference) or `relu`."""
    dropout: float = 0.2
    context_layers: int = 0
    """Layers of the encoder's kind over the fired embeddings, so that what was heard in a neighbour's share is found
    there. The tap `acoustic` is behind them."""
    fires: str = "accumulate"
    """`accumulate` integrates estimated weights (the published method). `ctc` fires the encoder frame at each peak of the
    CTC head, and the last frame for the end of the sentence: in training the frames of the best path through the
    reference, in decoding those of the best path of all (ours; no weights are estimated)."""
    tail: float = 0.5
    """What remains after the last full token is a token if it weighs more than this (evaluation)."""


@dataclass
class DecoderConfig:
    kind: str = "autoregressive"
    """`autoregressive` (token by token, as the reference) or `parallel` (all at once: Paraformer, Gao et al. 2022)."""
    cross_attention: bool = True
    """Whether a `parallel` decoder also reads the encoder's output."""
    glancing: float = 0.75
    """Of a `parallel` decoder in training: how many tokens it is shown, as a share of those that it gets wrong by itself."""
    window: int = 0
    """For an `autoregressive` decoder of a CIF student: how many encoder frames to each side of a token's fire its hidden
    state attends to; 0 attends to none, as the reference."""
    layers: int = 2
    dim: int = 256
    heads: int = 4
    feedforward: int = 2048
    dropout: float = 0.2
    embedding_dropout: float = 0.1
    history_dropout: float = 0.0
    """Share of the tokens before that the decoder reads as unknown while it trains, so that it listens to the
    fired embeddings instead of guessing from a history that will have errors at run time."""
    output: str = "own"
    """Output layer: `own`, or `plm`: the input embeddings of the model whose pieces the tokens are (`tokenizer.kind:
    teacher`), behind a projection to their width and with a bias. They learn unless `training.freeze` names
    `decoder.vocabulary.weight`."""
    output_dim: int | None = None
    """Width of those embeddings; stated for `plm`, so that neither `info` nor the trained model needs the PLM."""
    init: str = ""
    """Encoder of BERT's kind, by name or folder, whose layers these layers start from; dims and heads must be its own."""
    init_layers: list[int] = field(default_factory=list)
    """Which of its layers, counted from 1, or from -1 for the last; empty takes the first ones."""


@dataclass
class TransducerConfig:
    """What stands behind the encoder of a transducer, which reads `ctc_weight` as well; 0 is no CTC head."""

    predictor: str = "stateless"
    """`stateless` (a convolution over the last tokens) or `lstm`."""
    context: int = 2
    """Of `stateless`: how many tokens it knows."""
    layers: int = 1
    """Of `lstm`."""
    dim: int = 512
    """Of the prediction network."""
    joiner_dim: int = 512
    """Time and memory of training grow with it, frames times tokens."""
    dropout: float = 0.1
    """In the prediction network."""
    monotonic: bool = False
    """Whether the loss allows one token a frame at most, too, as decoding does by default."""
    symbols: int = 1
    """Most tokens that greedy decoding takes from one frame; a beam takes one."""
    weight: float = 1.0
    """Of its loss."""


@dataclass
class StudentConfig:
    kind: str = "cif"
    """`cif`; `hybrid`: an encoder that says which senone every frame is; `ctc`: an encoder and a CTC head;
    `attention`: these two and a decoder with attention to the frames; or `transducer`."""
    faithful: bool = False
    """The reference's architecture (input projection, relative positions) and EOS handling (EOS is a CTC
    label, `zero_infinity` off)."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cif: CifConfig = field(default_factory=CifConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    label_smoothing: float = 0.1
    ce_weight: float = 1.0
    ctc_weight: float = 0.5
    quantity_weight: float = 1.0
    alignment_weight: float = 0.0
    """Of keeping each token's share of the CIF weights where the CTC head hears the token (ours)."""


STUDENT_CHOICES: dict[str, tuple[str, ...]] = {
    "student.kind": ("cif", "hybrid", "ctc", "attention", "transducer"),
    "student.transducer.predictor": ("stateless", "lstm"),
    "student.frontend.kind": ("conv2d", "frames"),
    "student.cif.activation": ("none", "relu"),
    "student.cif.fires": ("accumulate", "ctc"),
    "student.decoder.kind": ("autoregressive", "parallel"),
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
