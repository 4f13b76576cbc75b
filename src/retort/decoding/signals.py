"""Signals of the decoder and the CTC head that distinguish speech from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retort.common.peaks import path_peaks
from retort.decoding.hypothesis import NOT_FRAME_LABELS, Hypothesis, from_peaks
from retort.decoding.no_speech import MOST_RATIO
from retort.text.tokenizers import BLANK

if TYPE_CHECKING:
    from retort.students.student import Encoded, Student


def decoding_signals(
    student: Student, encoded: Encoded, best: Sequence[Hypothesis], seconds: Sequence[float]
) -> list[dict[str, float]]:
    """:func:`signals` of a batch; those that the student has.

    Args:
        best: the best hypothesis of each utterance.
        seconds: duration of each utterance.
    """
    import torch

    from retort.students.cif import CifStudent
    from retort.students.ctc import HasCtc, ctc_log_probs

    with torch.inference_mode():
        quantity = log_probs = None
        if isinstance(student, CifStudent) and student.weights is not None:
            quantity = student.weights(encoded.hidden, encoded.lengths, student.encoder.chunks).sum(1).tolist()
        if isinstance(student, HasCtc):
            log_probs = ctc_log_probs(student, encoded).float().cpu().numpy()
    return signals(best, seconds, quantity, log_probs, encoded.lengths.tolist())


def signals(
    best: Sequence[Hypothesis],
    seconds: Sequence[float],
    quantity: Sequence[float] | None,
    log_probs: NDArray[np.float32] | None,
    lengths: Sequence[int],
) -> list[dict[str, float]]:
    """Signals that distinguish speech from noise, for each utterance of a batch.

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
        quantity: sum of the weights of CIF, or None.
        log_probs: `(B, T, V)` of a CTC head, or None.
        lengths: encoder frames of each utterance.
    """
    rows = [
        {
            "confidence": math.exp(sum(each.log_probs) / len(each.ids)) if each.ids else 0.0,
            "token_rate": len(each.ids) / max(duration, 1e-3),
        }
        for each, duration in zip(best, seconds)
    ]
    if quantity is not None:
        for row, each, weight, duration in zip(rows, best, quantity, seconds):
            row["cif_ratio"] = min(weight / max(len(each.ids), 1), MOST_RATIO)
            row["cif_rate"] = weight / max(duration, 1e-3)
    if log_probs is None:
        return rows
    for row, each, frames, duration, length in zip(rows, best, log_probs, seconds, lengths):
        row |= _ctc_signals(frames[:length], len(each.ids), duration)
    return rows


def _ctc_signals(log_probs: NDArray[Any], tokens: int, seconds: float) -> dict[str, float]:
    """Signals of the CTC head's `log_probs (T, V)` for an utterance with a number of tokens."""
    probs = np.exp(log_probs)
    entropies = -np.where(probs > 0.0, log_probs, 0.0) * probs
    path = ctc_path(log_probs)
    count = len(path.ids)
    return {
        "ctc_ratio": min(count / max(tokens, 1), MOST_RATIO),
        "ctc_rate": count / max(seconds, 1e-3),
        "ctc_confidence": sum(map(math.exp, path.log_probs)) / count if count else 0.0,
        "ctc_entropy": float(entropies.sum(1).mean()) / math.log(log_probs.shape[1]),
        "ctc_spoken": float((1.0 - probs[:, BLANK]).mean()),
    }


def ctc_path(log_probs: NDArray[Any]) -> Hypothesis:
    """The most probable label of every frame of `log_probs (T, V)`, without repeats and blanks."""
    labels = log_probs.argmax(1)
    scores = log_probs[np.arange(len(labels)), labels]
    return from_peaks(path_peaks(labels.tolist(), scores.tolist(), (BLANK, *NOT_FRAME_LABELS)))
