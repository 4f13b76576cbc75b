"""What training and decoding need of every student."""

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
from retort.text.tokenizers import Tokenizer

Unit = Literal["token", "frame", "utterance"]


@dataclass(frozen=True)
class Tap:
    """A named tensor of a student that rows of distillation may read.

    Attributes:
        values: `(B, N, D)`, floating point; N counts tokens (EOS included), frames, or is 1 for an utterance.
        lengths: `(B,)` int64, how many of the N positions are valid.
        unit: what one position stands for.
        hard: of an output with hard labels, `(B, N)` float32: what each position adds to the student's weighted loss;
            0 where it has no label.
        present: None, or `(B, N)` bool: the positions at which the student has anything to be compared. A student of
            which EOS is no label has no EOS there, yet counts it in `lengths` as teachers do.
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
    """One training pass.

    Attributes:
        losses: unweighted sums over the batch, by name.
        taps: what rows of distillation may read.
        metrics: sums over the batch that are only logged.
    """

    losses: dict[str, Tensor]
    taps: dict[str, Tap]
    metrics: dict[str, Tensor]


class Labelled(Protocol):
    """Utterances with labels; each kind of student reads its own.

    Attributes:
        tokens: `(B, U)` int64, EOS last, then pad.
        token_lengths: `(B,)`, including EOS.
        senones: `(B, T')` int64, of every encoder frame, -1 for none; None without an alignment.
    """

    tokens: Tensor
    token_lengths: Tensor
    senones: Tensor | None


SHORTEST = 3
"""Encoder frames under which an utterance is too short."""


def check_length(encoder: Encoder, frames: int, where: str) -> None:
    """See that an utterance of so many feature frames is neither too short nor too long for the encoder.

    Raises:
        BadUtterance: it is.
    """
    if int(encoder.output_lengths(torch.tensor([frames]))) < SHORTEST:
        raise BadUtterance(f"it is too short ({frames} frames)", where=where)
    if encoder.longest is not None and frames > encoder.longest:
        raise BadUtterance(
            f"it is too long ({frames} frames, the encoder takes {encoder.longest})", where=where
        )


class Student(nn.Module, ABC):
    """A recogniser that learns: its `forward(features, feature_lengths, *labels)` gives a :class:`StudentOutput`."""

    config: StudentConfig
    encoder: Encoder

    vocabulary_parts: ClassVar[tuple[str, ...]]
    """Prefixes of the parameters whose rows are the ids of the student's output."""

    def encode(self, features: Tensor, feature_lengths: Tensor) -> Encoded:
        """`features (B, T, bins)` after CMVN to hidden frames."""
        return Encoded(*self.encoder(features, feature_lengths))

    def read_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take what the student needs to know of the pieces of its tokenizer; most need nothing."""
        return

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of an utterance, including EOS; None without a limit."""
        return None

    @property
    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Weight of each of :attr:`StudentOutput.losses` in the total."""

    @property
    @abstractmethod
    def tap_dims(self) -> dict[str, int]:
        """The taps that `forward` gives, with their last dimension."""

    @property
    @abstractmethod
    def tap_units(self) -> dict[str, Unit]:
        """The units of these taps."""

    @property
    @abstractmethod
    def prose(self) -> str:
        """What stands behind the encoder, in a line."""

    @property
    def outputs(self) -> Mapping[str, Sequence[str]]:
        """Of taps that are outputs over symbols with names: the name of each class.

        A teacher of soft labels over symbols teaches such a tap by their names, without a head of the row's own.
        """
        return {}

    @property
    @abstractmethod
    def criterion(self) -> str:
        """The value of an evaluation that chooses checkpoints; lower is better."""

    @abstractmethod
    def labels(self, batch: Labelled) -> tuple[Tensor, ...]:
        """What `forward` takes behind the features and their lengths."""

    @abstractmethod
    def positions(self, batch: Labelled) -> int:
        """How many positions have a label: what sums of losses are divided by."""
