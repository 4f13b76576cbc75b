"""Probability that a segment contains no speech but noise, music or a hum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MOST_RATIO = 3.0
"""Upper limit of the ratio of CTC tokens to tokens."""
FARTHEST = 4.0
"""Limit of a standardised signal, in standard deviations."""


class Signal(NamedTuple):
    """Parameters of a signal, which contributes `weight * (value - mean) / deviation`, clamped to `FARTHEST`."""

    mean: float
    deviation: float
    weight: float


@dataclass(frozen=True)
class NoSpeech:
    """Logistic regression over signals of the decoder, the CTC head and the audio.

    Attributes:
        signals: by name (see :func:`retort.decoding.signals.decoding_signals` and
            :func:`retort.audio.texture.sound_signals`); one that a student lacks counts as its mean.
        bias: bias of the logit of no speech.
        threshold: a segment with a higher probability is empty; 1 keeps all words.
    """

    signals: Mapping[str, Signal]
    bias: float
    threshold: float

    def __call__(self, values: Mapping[str, float]) -> float:
        """Probability of no speech, in [0, 1]."""
        logit = self.bias
        for name, signal in self.signals.items():
            if name in values:
                standard = (values[name] - signal.mean) / signal.deviation
                logit += signal.weight * max(-FARTHEST, min(FARTHEST, standard))
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, logit))))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        rounded = {name: [float(f"{value:.6g}") for value in each] for name, each in self.signals.items()}
        return {
            "signals": rounded,
            "bias": float(f"{self.bias:.6g}"),
            "threshold": float(f"{self.threshold:.6g}"),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> NoSpeech:
        """Create an instance from the output of :meth:`to_dict`.

        Raises:
            ValueError: a number is not valid.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("signals"), Mapping):
            raise ValueError("no_speech has no signals")
        signals = {str(name): Signal(*map(float, each)) for name, each in content["signals"].items()}
        made = cls(signals, float(content["bias"]), float(content["threshold"]))
        numbers = [made.bias, made.threshold, *(number for each in signals.values() for number in each)]
        if not all(map(math.isfinite, numbers)) or any(each.deviation <= 0 for each in signals.values()):
            raise ValueError("no_speech has invalid numbers")
        return made


UNCALIBRATED = NoSpeech(
    {"confidence": Signal(0.3, 0.1, -1.0), "ctc_ratio": Signal(0.7, 0.25, -1.0)}, bias=-1.0, threshold=1.0
)
"""Parameters of a model without calibration by `retort tune --noise`: no words are removed."""
