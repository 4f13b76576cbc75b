"""The interface of students for training and decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from retort.common.errors import BadUtterance
from retort.config.student import StudentConfig
from retort.nn.encoder import Encoder
from retort.students.fired import SegmentedUtterances
from retort.text.tokenizers import Tokenizer

Unit = Literal["token", "frame", "utterance"]


@dataclass(frozen=True)
class Tap:
    """A named tensor of a student that distillation rows can use.

    Attributes:
        values: `(B, N, D)`, floating point; N counts tokens (EOS included), frames, or is 1 for an utterance.
        lengths: `(B,)` int64, number of valid positions.
        unit: unit of a position.
        hard: for an output with hard labels, `(B, N)` float32: contribution of each position to the student's
            weighted loss; 0 without a label.
        present: None, or `(B, N)` bool: positions that can be compared with a teacher. For a student whose labels
            exclude EOS, the position of EOS is not present, but counted in `lengths`, as in teachers.
    """

    values: Tensor
    lengths: Tensor
    unit: Unit
    hard: Tensor | None = None
    present: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """Encoder output: `hidden (B, T, D)` float32, zero beyond `lengths (B,)`."""

    hidden: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class StudentOutput:
    """Output of a forward pass in training.

    Attributes:
        losses: unweighted sums over the batch, by name.
        taps: taps by name.
        metrics: sums over the batch that are only logged, by name.
        fired: frames and fired embeddings of the tokens, without gradient, of a student with an autoregressive decoder
            over them; None for others.
    """

    losses: dict[str, Tensor]
    taps: dict[str, Tap]
    metrics: dict[str, Tensor]
    fired: SegmentedUtterances | None = None


class Labelled(Protocol):
    """Labels of a batch; each kind of student uses its own.

    Attributes:
        tokens: `(B, U)` int64, EOS last, then pad.
        token_lengths: `(B,)`, including EOS.
        senones: `(B, T')` int64, label of every encoder frame, -1 for none; None without an alignment.
    """

    tokens: Tensor
    token_lengths: Tensor
    senones: Tensor | None


SHORTEST = 3
"""Minimum number of encoder frames of an utterance."""


def check_length(encoder: Encoder, frames: int, where: str) -> None:
    """Check that the number of feature frames is within the limits of the encoder.

    Raises:
        BadUtterance: the utterance is too short or too long.
    """
    if int(encoder.output_lengths(torch.tensor([frames]))) < SHORTEST:
        raise BadUtterance(f"it is too short ({frames} frames)", where=where)
    if encoder.longest is not None and frames > encoder.longest:
        raise BadUtterance(
            f"it is too long ({frames} frames, the encoder takes {encoder.longest})", where=where
        )


class Student(nn.Module, ABC):
    """Base class of students: `forward(features, feature_lengths, *labels)` returns a :class:`StudentOutput`."""

    config: StudentConfig
    encoder: Encoder

    vocabulary_parts: ClassVar[tuple[str, ...]]
    """Prefixes of the parameters whose rows correspond to output ids."""

    def encode(self, features: Tensor, feature_lengths: Tensor) -> Encoded:
        """Encode `features (B, T, bins)` after CMVN."""
        return Encoded(*self.encoder(features, feature_lengths))

    def read_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Store the properties of the tokenizer that the student needs; most students need none."""
        return

    @property
    def most_tokens(self) -> int | None:
        """Maximum number of tokens of an utterance, including EOS; None without a limit."""
        return None

    @property
    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Weight of each of :attr:`StudentOutput.losses` in the total."""

    @property
    @abstractmethod
    def tap_dims(self) -> dict[str, int]:
        """Taps of `forward`, with their last dimension."""

    @property
    @abstractmethod
    def tap_units(self) -> dict[str, Unit]:
        """Units of the taps."""

    @property
    @abstractmethod
    def prose(self) -> str:
        """A one-line description of the part after the encoder."""

    def tap_parameters(self, tap: str) -> list[nn.Parameter]:
        """Parameters of the part that computes a tap, on which the gradients of losses are compared: those of the decoder,
        or of the encoder layer N for `frames.N`, of the last one for other taps."""
        decoder = getattr(self, "decoder", None)
        if isinstance(decoder, nn.Module) and tap in ("history", "linguistic", "tokens"):
            return list(decoder.parameters())
        number = int(tap.removeprefix("frames.")) if tap.startswith("frames.") else len(self.encoder.layers)
        return list(self.encoder.layers[max(number, 1) - 1].parameters()) if len(self.encoder.layers) else []

    @property
    def outputs(self) -> Mapping[str, Sequence[str]]:
        """Names of the classes of taps that are outputs over named symbols.

        A teacher of soft labels over symbols can train such a tap by names, without a head of the row's own.
        """
        return {}

    @property
    @abstractmethod
    def criterion(self) -> str:
        """The metric that selects checkpoints; lower is better."""

    @abstractmethod
    def labels(self, batch: Labelled) -> tuple[Tensor, ...]:
        """Arguments of `forward` after the features and their lengths."""

    @abstractmethod
    def positions(self, batch: Labelled) -> int:
        """Number of positions with a label, by which sums of losses are divided."""
