"""Taps on the layers of an encoder, the same for every student that has one."""

from __future__ import annotations

from torch import Tensor

from retort.nn.encoder import Encoder
from retort.student_config import EncoderConfig
from retort.students.student import Encoded
from retort.students.taps import Tap


def layer_dims(config: EncoderConfig) -> dict[str, int]:
    """`frames.N` of every layer N, counted from 1, that has the rate of the output; with their last dimension."""
    return {f"frames.{number}": config.dim for number in _layers(config)}


def encode_in_layers(
    encoder: Encoder, config: EncoderConfig, features: Tensor, lengths: Tensor
) -> tuple[Encoded, dict[str, Tap]]:
    """What the encoder gives, and the taps of :func:`layer_dims`, the last of which is that.

    What stands behind a length is undefined in the others. In training mode `features` are stored frames where
    :attr:`Encoder.stored` says so.
    """
    frames = list(encoder.each_layer(features, lengths, encoder.stored if encoder.training else 0))
    encoded = Encoded(encoder.finished(*frames[-1]), frames[-1][1])
    hidden = [*(each for each, _ in frames[:-1]), encoded.hidden]
    taps = {f"frames.{number}": Tap(hidden[number], encoded.lengths, "frame") for number in _layers(config)}
    return encoded, taps


def _layers(config: EncoderConfig) -> range:
    return range(max(config.pool_after, default=1), config.layers + 1)
