"""Shared parts of students whose output is tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from retort.config.student import EncoderConfig
from retort.nn.encoder import Encoder
from retort.nn.masks import masked_mean, valid_mask
from retort.students.student import Encoded, Labelled, Student, Tap, Unit


def layer_dims(config: EncoderConfig) -> dict[str, int]:
    """`frames.N` of every layer N, from 1, with the frame rate of the output, and `encoder`; their last dimension."""
    return {**{f"frames.{number}": config.dim for number in _layers(config)}, "encoder": config.dim}


def encode_in_layers(
    encoder: Encoder, config: EncoderConfig, features: Tensor, lengths: Tensor
) -> tuple[Encoded, dict[str, Tap]]:
    """Encoder output, and the taps of :func:`layer_dims`, the last of which is the encoder output.

    Values beyond the lengths are undefined in the other taps. In training mode `features` are stored frames if
    :attr:`Encoder.stored` is set.
    """
    frames = list(encoder.each_layer(features, lengths, encoder.stored if encoder.training else 0))
    encoded = Encoded(encoder.finished(*frames[-1]), frames[-1][1])
    hidden = [*(each for each, _ in frames[:-1]), encoded.hidden]
    taps = {f"frames.{number}": Tap(hidden[number], encoded.lengths, "frame") for number in _layers(config)}
    return encoded, taps | {"encoder": Tap(encoded.hidden, encoded.lengths, "frame")}


def _layers(config: EncoderConfig) -> range:
    return range(max(config.pool_after, default=1), config.layers + 1)


class TokenStudent(Student):
    """Base class of students over tokens: `forward(features, feature_lengths, tokens, token_lengths)`.

    `features` is `(B, T, bins)`, `feature_lengths` is `(B,)`. `tokens (B, U)` are int64, EOS last, then pad; U may be
    more than the longest of `token_lengths (B,)`, which include EOS. The taps are `frames.N`, `utterance`, and taps
    over tokens.
    """

    decoder_loss: ClassVar[str] = "ce"
    """Name of the main loss of the output, besides that of a CTC head."""

    @property
    def criterion(self) -> str:
        """Character errors; of the CTC head if only it is trained."""
        return "cer" if self.loss_weights[self.decoder_loss] > 0.0 else "ctc_cer"

    @property
    def tap_units(self) -> dict[str, Unit]:
        return {name: _unit(name) for name in self.tap_dims}

    def labels(self, batch: Labelled) -> tuple[Tensor, ...]:
        return batch.tokens, batch.token_lengths

    def positions(self, batch: Labelled) -> int:
        """Number of tokens, including EOS, so that losses of different kinds of students are comparable."""
        return int(batch.token_lengths.sum())

    def encode_in_layers(self, features: Tensor, feature_lengths: Tensor) -> tuple[Encoded, dict[str, Tap]]:
        """:meth:`encode` with the taps `frames.N` of the layers."""
        return encode_in_layers(self.encoder, self.config.encoder, features, feature_lengths)


def utterance_tap(hidden: Tensor, lengths: Tensor) -> Tap:
    """The mean of `hidden (B, N, D)` over the first `lengths (B,)` of each utterance."""
    mean = masked_mean(hidden, valid_mask(lengths, hidden.shape[1]))
    return Tap(mean, torch.ones_like(lengths), "utterance")


def at_frames(values: Tensor, frames: Tensor) -> Tensor:
    """`(B, U, D)`: `values (B, T, D)` at `frames (B, U)` int64."""
    return values.gather(1, frames[..., None].expand(-1, -1, values.shape[-1]))


def _unit(tap: str) -> Unit:
    if tap.startswith("frames.") or tap in ("encoder", "ctc"):
        return "frame"
    return "utterance" if tap == "utterance" else "token"
