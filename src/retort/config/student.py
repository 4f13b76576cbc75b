"""The schema of students: front end, encoder, decoder and losses. The text below a field documents it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

from retort.common.errors import UserError
from retort.config.kinds import of_kind
from retort.config.ranges import MILLION, WIDEST, number, numbers

if TYPE_CHECKING:
    from retort.config.schema import Recipe


@dataclass
class FrontendConfig:
    """Front end: convolutions that reduce the frame rate. Base class of its kinds."""

    kind: str = ""
    """Kind of the front end."""


@dataclass
class EncoderConfig:
    """Encoder of the student: base class of its kinds, which are declared with their modules.

    Attributes:
        reads: kinds of features that the encoder accepts.
        chunked: whether its layers can be limited to chunks.
    """

    kind: str = ""
    """Kind of the encoder."""
    dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability."""
    pool_after: list[int] = numbers([], 1, 1000)
    """Layers, counted from 1, after which the frame rate is halved by max pooling over two frames; in a Zipformer and
    in pretrained encoders by an average with learned weights."""

    chunk: list[int] = numbers([0], 0, 100_000)
    """For streaming: chunk sizes in frames of the encoder's output, one of which is drawn for each update; 0 is the
    whole utterance. A frame depends on its own chunk and earlier ones only. For `conformer`, `transformer`, `zipformer`
    and Whisper encoders."""
    left_context: list[int] = numbers([0], 0, 100_000)
    """With `chunk`: numbers of frames before a chunk that self-attention is limited to, one of which is drawn for each
    update; 0 for all."""

    reads: ClassVar[tuple[str, ...]] = ("fbank",)
    chunked: ClassVar[bool] = False

    @property
    def model(self) -> str:
        """The pretrained model that initialises the encoder; empty for none."""
        return ""

    @property
    def layers(self) -> int:
        """Number of layers."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """Width of the output."""
        raise NotImplementedError

    @property
    def prose(self) -> str:
        """A one-line description."""
        return f"{self.layers} {self.kind} layers, dim {self.dim}"

    def validate(self, key: str) -> None:
        """Check the values against each other.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        pooled = self.pool_after
        if len(set(pooled)) < len(pooled) or not all(1 <= layer <= self.layers for layer in pooled):
            raise UserError(
                f"{key}.pool_after is {list(pooled)}", remedy=f"Give different layers from 1 to {self.layers}"
            )

    def check(self, recipe: Recipe, where: str) -> None:
        """Check the values against the rest of the recipe.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        return


def check_odd(key: str, value: int) -> None:
    """Check the size of a kernel.

    Raises:
        UserError: it is even.
    """
    if value % 2 == 0:
        raise UserError(f"{key} is {value}", remedy="Choose an odd number")


def check_heads(key: str, dim: int, heads: int) -> None:
    """Check that a width can be divided among attention heads with rotary or relative positions.

    Raises:
        UserError: it cannot.
    """
    if dim % (2 * heads):
        raise UserError(f"{key}.dim is {dim}, {key}.heads is {heads}", remedy="dim must be a multiple of 2 x heads")


def check_whisper_decoder(recipe: Recipe, owner: str, where: str) -> None:
    """Check that a recipe with Whisper's decoder has the encoder, features and tokenizer of Whisper.

    Args:
        recipe: the recipe.
        owner: the key that chooses the decoder.
        where: for the message.

    Raises:
        UserError: names the key, its value and what is permitted.
    """
    for key, value, allowed in (
        ("student.encoder.kind", recipe.student.encoder.kind, ("pretrained",)),
        ("features.kind", recipe.features.kind, ("whisper",)),
        ("tokenizer.kind", recipe.tokenizer.kind, ("whisper", "init")),
    ):
        if value not in allowed:
            raise UserError(f"{key} is {value}, but {owner} is whisper", where=where, remedy=f"Set {key}: {allowed[0]}")


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

    def validate(self, key: str) -> None:
        """Check the kernel, as :func:`check_odd`."""
        check_odd(f"{key}.kernel", self.kernel)


@dataclass
class DecoderConfig:
    """Decoder of a CIF student: base class of its kinds, which are declared with their modules."""

    kind: str = ""
    """Kind of the decoder."""

    @property
    def more_prose(self) -> str:
        """Parts of a one-line description, after the sizes."""
        return ""

    @property
    def without_initial_model(self) -> Self:
        """The same without names of models that initialise weights, as it is stored with a trained model."""
        return self

    def check(self, recipe: Recipe, where: str) -> None:
        """Check the values against the rest of the recipe.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        return


@dataclass
class DecoderSizes:
    """Sizes of a Transformer decoder."""

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

    @property
    def prose(self) -> str:
        """A one-line description."""
        return f"{self.layers} layers, dim {self.dim}, {self.heads} heads, feed-forward {self.feedforward}"

    def validate(self, key: str) -> None:
        """Check the values against each other.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        check_heads(key, self.dim, self.heads)


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

    def validate(self, key: str) -> None:
        """Check the values against each other.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        if self.monotonic and self.symbols > 1:
            raise UserError(
                f"{key}.symbols is {self.symbols}, but monotonic allows one token per frame", remedy="Remove symbols"
            )


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
    frontend: FrontendConfig = of_kind("frontend", "conv2d")
    """Front end."""
    encoder: EncoderConfig = of_kind("encoder", "conformer")
    """Encoder."""
    cif: CifConfig = field(default_factory=CifConfig)
    """Continuous integrate-and-fire, for `cif`."""
    decoder: DecoderConfig = of_kind("decoder", "autoregressive")
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
    "student.cif.activation": ("none", "relu"),
    "student.cif.fires": ("accumulate", "ctc"),
}
