"""The schema of students: front end, encoder, decoder and losses. The text below a field documents it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retort.config.ranges import BILLION, MILLION, WIDEST, number, numbers


@dataclass
class FrontendConfig:
    """Front end: convolutions that reduce the frame rate."""

    kind: str = "conv2d"
    """`conv2d` (convolutions over time and bins, as in the reference) or `frames` (a convolution over time only, for
    any integer reduction of the frame rate)."""
    channels: int = number(128, 1, 8192)
    """Number of channels of each `conv2d` convolution."""
    layers: int = number(1, 1, 2)
    """For `conv2d`: number of convolutions of stride 2 (1 or 2); each one halves the frame rate."""
    stride: int = number(1, 1, 100)
    """For `frames`: number of feature frames per output frame: 1 for 10 ms, 3 for 30 ms."""


@dataclass
class ZipformerConfig:
    """Sizes of a Zipformer, one number per stack; the defaults are those of the published Zipformer-M."""

    blocks: list[int] = numbers([2, 2, 3, 4, 3, 2], 1, 100)
    """Number of Zipformer blocks of each stack."""
    downsampling: list[int] = numbers([1, 2, 4, 8, 4, 2], 1, 1000)
    """Number of front-end frames per frame of the stack; 1 keeps the frame rate."""
    dims: list[int] = numbers([192, 256, 384, 512, 384, 256], 4, WIDEST)
    """Channels, multiples of 4. The largest is the encoder's `dim`."""
    heads: list[int] = numbers([4, 4, 4, 8, 4, 4], 1, 1024)
    """Number of attention heads."""
    feedforward: list[int] = numbers([512, 768, 1024, 1536, 1024, 768], 4, WIDEST)
    """Width of the second of the three feed-forward modules of a block, a multiple of 4; the first has 3/4 and the
    third 5/4 of it."""
    kernels: list[int] = numbers([31, 31, 15, 15, 15, 31], 1, 1001)
    """Kernel sizes of the depthwise convolutions in frames of the stack; odd."""
    query_dim: int = number(32, 1, WIDEST)
    """Dimension of queries and keys per head."""
    value_dim: int = number(12, 1, WIDEST)
    """Dimension of values per head."""
    position_dim: int = number(4, 1, WIDEST)
    """Dimension of the positional part of the queries per head."""
    table_dim: int = number(48, 2, WIDEST)
    """Dimension of the sinusoidal relative position encoding; even."""
    straight_steps: int = number(20000, 0, BILLION)
    """Number of updates at the start of training during which the scale of the bypass of every block and stack is at
    least 0.9; afterwards it is at least 0.2. Use 0 to continue from a trained model."""


@dataclass
class EncoderConfig:
    """Encoder of the student."""

    kind: str = "conformer"
    """`conformer`; `transformer`; `tdnnf` (factorised time-delay layers; uses `layers`, `dim`, `dropout`,
    `bottleneck`, `dilations` and `pool_after`); `branchformer` (self-attention and cgMLP in parallel; no
    `feedforward`); `e_branchformer` (the same between two feed-forward modules); `zipformer` (its layers are the
    stacks of `zipformer`; also uses `layers`, `dim`, `dropout`, `attention_dropout` and `pool_after`); or `pretrained`
    (the speech encoder `model`, with its own front end and dropout; `dim` is its width). Pretrained models with
    `features.kind: wave` count as one layer (`layers: 1`); of Whisper, w2v-BERT 2.0 and Parakeet encoders the first
    `layers` are used, and `pool_after` averages frames with learned weights."""
    model: str = ""
    """For `pretrained`: Hugging Face name, folder, or short name of `retort fetch` of a wav2vec 2.0, HuBERT, WavLM,
    UniSpeech, Whisper, w2v-BERT 2.0 or Parakeet model. Its weights initialise the encoder."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Configuration of that model. It is filled in when the model is loaded, so that a trained student does not need
    it."""
    layers: int = number(15, 0, 1000)
    """Number of layers (of stacks for `zipformer`)."""
    dim: int = number(256, 1, WIDEST)
    """Width of the encoder's output."""
    heads: int = number(4, 1, 1024)
    """Number of attention heads."""
    feedforward: int = number(2048, 1, WIDEST)
    """Width of the feed-forward modules."""
    kernel: int = number(15, 1, 1001)
    """Kernel size of the Conformer's depthwise convolution in frames; odd."""
    convolution_norm: str = "batch"
    """Normalisation after that convolution: `batch` (as in the reference) or `layer`. In batches of few utterances the
    statistics differ so much from the running statistics of `batch` that CIF fires too many or too few tokens in
    evaluation."""
    positions: str = "relative"
    """`relative` (Transformer-XL, as in the reference) or `rotary` (faster on a CPU)."""
    dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability."""
    attention_dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability of attention weights. 0 allows a fused attention kernel, which is much faster on a CPU."""
    bottleneck: int = number(128, 1, WIDEST)
    """For `tdnnf`: dimension between the two factors of a layer's weights, at most 2 x `dim`."""
    dilations: list[int] = numbers([1], 1, 1000)
    """For `tdnnf`: dilation of each layer in frames (its context to each side); the last number is used for all
    further layers."""
    cgmlp: int = number(1536, 2, WIDEST)
    """For Branchformers: width of the cgMLP before its gate halves it; 6 x `dim` in the large models of the papers."""
    cgmlp_kernel: int = number(31, 1, 1001)
    """For Branchformers: kernel size of the depthwise convolution in the gate of the cgMLP, in frames; odd."""
    merge: str = "concat"
    """For `branchformer`: how the branches are merged, `concat` (by a linear layer) or `average` (with learned
    weights, two per utterance)."""
    merge_kernel: int = number(31, 1, 1001)
    """For `e_branchformer`: kernel size of the depthwise convolution over the merged branches, in frames; odd."""
    zipformer: ZipformerConfig = field(default_factory=ZipformerConfig)
    """Sizes of `zipformer`."""
    pool_after: list[int] = numbers([5, 10], 1, 1000)
    """Layers, counted from 1, after which the frame rate is halved by max pooling over two frames; in a Zipformer by
    an average with learned weights."""


@dataclass
class CifConfig:
    """Continuous integrate-and-fire (CIF)."""

    kernel: int = number(3, 1, 1001)
    """Kernel size of the convolution that predicts the weights, in frames; odd."""
    activation: str = "none"
    """Activation after that convolution: `none` (as in the reference) or `relu`."""
    dropout: float = number(0.2, 0, 1, below=True)
    """Dropout probability after that convolution."""
    context_layers: int = number(0, 0, 1000)
    """Number of layers, of the same kind as the encoder's, over the fired embeddings, which let each token use the
    acoustics of its neighbours. The tap `acoustic` is their output."""
    fires: str = "accumulate"
    """`accumulate` integrates predicted weights (the published method). `ctc` takes the encoder frame at each peak of
    the CTC head, and the last frame for EOS: in training at the frames of the best path of the reference, in decoding
    at those of the best path (ours; no weights are predicted)."""
    tail: float = number(0.5, 0, 1)
    """In evaluation: the weight left after the last full token becomes a token if it is larger than this."""
    spare: int = number(0, 0, 1000)
    """In decoding, for a `whisper` decoder: number of additional fires, of the last frame, after the last one. That
    decoder ends a sentence by itself, so no words are lost if CIF fires too few tokens. With it, EOS is scored only
    once per hypothesis."""


@dataclass
class DecoderConfig:
    """Decoder of the student."""

    kind: str = "autoregressive"
    """`autoregressive` (token by token, as in the reference), `parallel` (all tokens at once: Paraformer, Gao et al.
    2022) or `whisper`: the decoder of the Whisper model whose encoder is used, with its tokenizer, one step per fire.
    A `whisper` decoder uses only `window` and `history_dropout` of the options below (ours)."""
    cross_attention: bool = True
    """Whether a `parallel` decoder also attends to the encoder's output."""
    glancing: float = number(0.75, 0, 1)
    """For a `parallel` decoder in training (glancing sampling): number of reference tokens given as input, as a share
    of the tokens that the first pass gets wrong."""
    window: int = number(0, 0, 1000)
    """For CIF students: number of encoder frames on each side of a token's fire to which an `autoregressive` decoder
    attends; 0 for no attention, as in the reference. For a `whisper` decoder the same, but 0 is attention to all
    frames."""
    layers: int = number(2, 0, 1000)
    """Number of layers."""
    dim: int = number(256, 1, WIDEST)
    """Width of the decoder."""
    heads: int = number(4, 1, 1024)
    """Number of attention heads."""
    feedforward: int = number(2048, 1, WIDEST)
    """Width of the feed-forward modules."""
    dropout: float = number(0.2, 0, 1, below=True)
    """Dropout probability."""
    embedding_dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability of the input embeddings."""
    history_dropout: float = number(0.0, 0, 1, below=True)
    """Share of the previous tokens that are replaced by the unknown token in training, so that the decoder relies on
    the acoustics rather than on a history that has errors in decoding."""
    output: str = "own"
    """Output layer: `own`, or `plm`: the input embeddings of the language model whose tokenizer is used
    (`tokenizer.kind: teacher`), after a projection to their width, and with a bias. They are trained unless
    `training.freeze` names `decoder.vocabulary.weight`."""
    output_dim: int | None = number(None, 1, WIDEST)
    """Width of those embeddings; required for `plm`, so that neither `retort info` nor the trained student needs the
    language model."""
    init: str = ""
    """Name or folder of a BERT-like encoder whose layers initialise the layers of the decoder; `dim`, `heads` and
    `feedforward` must be the same."""
    init_layers: list[int] = numbers([], -1000, 1000)
    """Which of its layers are used, counted from 1, or from -1 for the last; empty for the first ones."""


@dataclass
class TransducerConfig:
    """Prediction network and joiner of a transducer. It also uses `ctc_weight`; 0 for no CTC head."""

    predictor: str = "stateless"
    """Prediction network: `stateless` (a convolution over the last tokens) or `lstm`."""
    context: int = number(2, 1, 1000)
    """For `stateless`: number of previous tokens."""
    layers: int = number(1, 1, 1000)
    """For `lstm`: number of layers."""
    dim: int = number(512, 1, WIDEST)
    """Width of the prediction network."""
    joiner_dim: int = number(512, 1, WIDEST)
    """Width of the joiner. Time and memory of training are proportional to it, and to frames times tokens."""
    dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability in the prediction network."""
    monotonic: bool = False
    """Whether the loss also allows at most one token per frame, as decoding does by default."""
    symbols: int = number(1, 1, 1000)
    """Maximum number of tokens per frame in greedy search; beam search outputs at most one."""
    weight: float = number(1.0, 0, MILLION)
    """Weight of the transducer loss."""


@dataclass
class StudentConfig:
    """The recogniser: architecture and weights of its losses."""

    kind: str = "cif"
    """`cif`; `hybrid` (an encoder that classifies frames into senones); `ctc` (an encoder with a CTC head);
    `attention` (encoder, CTC head, and a decoder that attends to the encoder's output); `transducer`; or `whisper`
    (Whisper's encoder, with `encoder.kind: pretrained`, and its decoder, which has no dropout and uses only
    `history_dropout` of `decoder`; with `ctc_weight` above 0 there is a CTC head over the bytes of the text)."""
    faithful: bool = False
    """Reproduce the published CIF-HKD code: input projection, relative positions, and EOS as a label of CTC (with
    `zero_infinity` off)."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    """Front end."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Encoder."""
    cif: CifConfig = field(default_factory=CifConfig)
    """Continuous integrate-and-fire, for `cif`."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Decoder, for `cif`, `attention` and `whisper`."""
    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    """Prediction network and joiner, for `transducer`."""
    label_smoothing: float = number(0.1, 0, 1, below=True)
    """Label smoothing of the cross-entropy loss."""
    ce_weight: float = number(1.0, 0, MILLION)
    """Weight of the cross-entropy loss of the decoder; of the frames for `hybrid`."""
    ctc_weight: float = number(0.5, 0, MILLION)
    """Weight of the CTC loss."""
    quantity_weight: float = number(1.0, 0, MILLION)
    """Weight of the CIF quantity loss, the difference between the sum of the weights and the number of tokens."""
    alignment_weight: float = number(0.0, 0, MILLION)
    """Weight of a loss that moves the CIF weights of each token to the frames where the CTC head, or with a `whisper`
    decoder its cross-attention, aligns the token (ours)."""

    @property
    def has_whisper_decoder(self) -> bool:
        """Whether the decoder is that of a Whisper model."""
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
