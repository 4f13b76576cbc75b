"""A segment of a recording with its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retort.decoding.speech_times import Seconds


@dataclass(frozen=True)
class SpeechSegment:
    """One segment of a recording with speech.

    Attributes:
        offset: start in the recording, seconds.
        duration: seconds.
        speech: ranges of the recording that contain speech, seconds; empty if silence is decoded, too.
        features: `(T, bins)`: a normalised tensor, or an array before CMVN for a model that includes it.
        sound: acoustic descriptors (:func:`retort.audio.texture.sound_signals`).
    """

    offset: float
    duration: float
    speech: list[Seconds]
    features: Any
    sound: Mapping[str, float] = field(default_factory=dict)
