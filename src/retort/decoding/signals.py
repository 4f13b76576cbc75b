"""Signals of the decoder and the CTC head that distinguish speech from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from retort.decoding.greedy import ctc_best_path
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.no_speech import MOST_RATIO
from retort.students.cif import CifStudent
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.text.tokenizers import BLANK


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
