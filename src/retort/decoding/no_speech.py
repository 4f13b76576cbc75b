"""Probability that a segment contains no speech but noise, music or a hum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from retort.decoding.greedy import Hypothesis, ctc_best_path
from retort.students.cif import CifStudent
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.text.tokenizers import BLANK

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
        signals: by name (see :func:`decoding_signals` and :func:`retort.audio.texture.sound_signals`); one
            that a student lacks counts as its mean.
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


@torch.inference_mode()
def decoding_signals(
    student: Student, encoded: Encoded, best: Sequence[Hypothesis], seconds: Sequence[float]
) -> list[dict[str, float]]:
    """Signals that distinguish speech from noise, for each utterance of a batch; those that the student has.

    - `confidence`: geometric mean of the token probabilities, 0 without tokens;
    - `token_rate`: tokens per second;
    - `ctc_ratio`: tokens of the CTC head's best path per token;
    - `ctc_rate`: tokens of the CTC head per second;
    - `ctc_confidence`: mean probability of these tokens;
    - `ctc_entropy`: entropy of the CTC head's distributions, mean over frames, relative to the logarithm of
      the vocabulary;
    - `ctc_spoken`: probability that a frame is not blank, mean over frames;
    - `cif_ratio`: sum of the weights that CIF estimates, per token;
    - `cif_rate`: the same sum per second.

    Args:
        best: the best hypothesis of each utterance.
        seconds: duration of each utterance.
    """
    rows = [
        {
            "confidence": math.exp(sum(each.log_probs) / len(each.ids)) if each.ids else 0.0,
            "token_rate": len(each.ids) / max(duration, 1e-3),
        }
        for each, duration in zip(best, seconds)
    ]
    if isinstance(student, CifStudent) and student.weights is not None:
        sums = student.weights(encoded.hidden, encoded.lengths).sum(1).tolist()
        for row, each, weight, duration in zip(rows, best, sums, seconds):
            row["cif_ratio"] = min(weight / max(len(each.ids), 1), MOST_RATIO)
            row["cif_rate"] = weight / max(duration, 1e-3)
    if not isinstance(student, HasCtc):
        return rows
    log_probs = ctc_log_probs(student, encoded).float()
    entropies = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(-1) / math.log(log_probs.shape[-1])
    non_blank = 1.0 - log_probs[..., BLANK].exp()
    paths = ctc_best_path(student, encoded)
    for row, each, path, duration, length, entropy, share in zip(
        rows, best, paths, seconds, encoded.lengths.tolist(), entropies, non_blank
    ):
        count = len(path.ids)
        row |= {
            "ctc_ratio": min(count / max(len(each.ids), 1), MOST_RATIO),
            "ctc_rate": count / max(duration, 1e-3),
            "ctc_confidence": sum(map(math.exp, path.log_probs)) / count if count else 0.0,
            "ctc_entropy": float(entropy[:length].mean()),
            "ctc_spoken": float(share[:length].mean()),
        }
    return rows
