"""Base classes of the configuration of students and their parts. The text below a field documents it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from retort.common.errors import UserError
from retort.config.kinds import of_kind
from retort.config.ranges import WIDEST, number, numbers

if TYPE_CHECKING:
    from retort.config.schema import Recipe


class PartConfig:
    """Base class of parts of a student that check their values."""

    def validate(self, key: str) -> None:
        """Check the values against each other.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        return

    def check(self, recipe: Recipe, where: str) -> None:
        """Check the values against the rest of the recipe.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        return


@dataclass
class FrontendConfig:
    """Front end: convolutions that reduce the frame rate. Base class of its kinds."""

    kind: str = ""
    """Kind of the front end."""


@dataclass
class EncoderConfig(PartConfig):
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
        pooled = self.pool_after
        if len(set(pooled)) < len(pooled) or not all(1 <= layer <= self.layers for layer in pooled):
            raise UserError(
                f"{key}.pool_after is {list(pooled)}", remedy=f"Give different layers from 1 to {self.layers}"
            )


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
    require(
        f"{owner} is whisper",
        where,
        ("student.encoder.kind", recipe.student.encoder.kind, ("pretrained",)),
        ("features.kind", recipe.features.kind, ("whisper",)),
        ("tokenizer.kind", recipe.tokenizer.kind, ("whisper", "init")),
    )


def require(reason: str, where: str, *values: tuple[str, object, tuple[object, ...]]) -> None:
    """Check values that another one requires.

    Args:
        reason: what requires them.
        where: for the message.
        values: keys, their values, and those that are permitted, the best one first.

    Raises:
        UserError: names the first key with another value.
    """
    for key, value, allowed in values:
        if value not in allowed:
            shown = str(value).lower() if isinstance(value, bool) else value
            best = str(allowed[0]).lower() if isinstance(allowed[0], bool) else allowed[0]
            raise UserError(f"{key} is {shown}, but {reason}", where=where, remedy=f"Set {key}: {best}")


@dataclass
class DecoderConfig(PartConfig):
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


@dataclass
class DecoderSizes(PartConfig):
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
        check_heads(key, self.dim, self.heads)


@dataclass
class StudentConfig(PartConfig):
    """The recogniser, its architecture and the weights of its losses: base class of its kinds, which are declared with
    their modules.

    Attributes:
        chunked: whether it can be trained in chunks.
        hard_labels: whether every position of its output has a label, which its loss compares.
    """

    kind: str = ""
    """Kind of the student."""
    frontend: FrontendConfig = of_kind("frontend", "conv2d")
    """Front end."""
    encoder: EncoderConfig = of_kind("encoder", "conformer")
    """Encoder."""

    chunked: ClassVar[bool] = False
    hard_labels: ClassVar[bool] = True

    @property
    def faithful(self) -> bool:
        """Whether it reproduces the published CIF-HKD code."""
        return False

    @property
    def decoder_config(self) -> object:
        """Configuration of the decoder; None without one."""
        return getattr(self, "decoder", None)

    @property
    def has_whisper_decoder(self) -> bool:
        """Whether the decoder is that of a Whisper model."""
        return False

    @property
    def without_initial_model(self) -> Self:
        """The same without names of models that initialise weights, as it is stored with a trained model."""
        own: dict[str, Any] = {"model": ""} if self.encoder.model else {}
        return replace(self, encoder=replace(self.encoder, **own))
