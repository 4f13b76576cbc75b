"""Calibration of word confidences: temperature scaling (Guo et al. 2017, arXiv 1706.04599) with a bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from retort.decoding.transcript import Transcript

LEAST = 1e-6
"""Confidences are limited to `[LEAST, 1 - LEAST]` for their logits."""


def logit(confidence: float) -> float:
    limited = min(max(confidence, LEAST), 1.0 - LEAST)
    return math.log(limited / (1.0 - limited))


@dataclass(frozen=True)
class Calibration:
    """Maps the confidence of a word, a product of token probabilities, to a probability that the word is correct.

    The calibrated confidence is `sigmoid(logit(confidence) / temperature + bias)`. The order of confidences is unchanged.

    Attributes:
        temperature: above 0; above 1 for a model that is too confident.
        bias: added to the logit.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, confidence: float) -> float:
        value = max(-60.0, min(60.0, logit(confidence) / self.temperature + self.bias))
        return 1.0 / (1.0 + math.exp(-value))

    def words(self, transcript: Transcript) -> Transcript:
        """The transcript with calibrated confidences of words; those of tokens stay probabilities of the decoder."""
        if self == AS_DECODED:
            return transcript
        words = [replace(each, confidence=self(each.confidence)) for each in transcript.words]
        return replace(transcript, words=words)

    def to_dict(self) -> dict[str, float]:
        """The content of `config.json`."""
        return {"temperature": float(f"{self.temperature:.6g}"), "bias": float(f"{self.bias:.6g}")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """Create an instance from the output of :meth:`to_dict`.

        Raises:
            ValueError: a number is not valid.
        """
        if not isinstance(content, Mapping):
            raise ValueError("confidence is not a table")
        made = cls(float(content["temperature"]), float(content["bias"]))
        if not (math.isfinite(made.bias) and math.isfinite(made.temperature) and made.temperature > 0):
            raise ValueError("confidence has invalid numbers")
        return made


AS_DECODED = Calibration()
"""The calibration of a model without one: confidences are the decoder's probabilities."""
