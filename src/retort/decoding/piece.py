"""A segment of a recording, ready for the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from retort.decoding.speech_times import Seconds


@dataclass(frozen=True)
class Piece:
    """One segment of a recording with speech.

    Attributes:
        offset: seconds of the recording before it.
        duration: seconds.
        speech: ranges in seconds of the recording in which it has speech; empty where silence is kept.
        features: `(T, bins)`, normalised over the segment.
        sound: what the sound is like (:func:`retort.audio.texture.sound_signals`).
    """

    offset: float
    duration: float
    speech: list[Seconds]
    features: Tensor
    sound: Mapping[str, float] = field(default_factory=dict)
