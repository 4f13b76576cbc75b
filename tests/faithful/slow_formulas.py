"""The published formulas, slowly: plain loops in float64, written for these tests, nothing of `retort` in them.

Of Han et al., Interspeech 2023 (arXiv 2301.13003), as their public code (MingLunHan/CIF-HieraDist) computes them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLD = 0.99


class Fired(NamedTuple):
    """Tokens (U, D), the frame at which each was complete, and the sum of the unscaled weights."""

    tokens: np.ndarray
    frames: list[int]
    times: list[float]
    quantity: float

    @property
    def durations(self) -> list[int]:
        """Frames between one fire and the one before; the first counts from frame 0."""
        return [after - before for before, after in itertools.pairwise([0, *self.frames])]


def fire(
    hidden: np.ndarray,
    alphas: np.ndarray,
    length: int,
    target: int | None = None,
    tail: float | None = None,
    dtype: type = np.float64,
) -> Fired:
    """The published recurrence over one utterance with its padding; all arithmetic in `dtype`.

    Args:
        hidden: (T, D), T - `length` frames of padding at the end.
        alphas: (T,).
        target: number of tokens to scale to (training).
        tail: threshold above which the remainder is a token, seen at the first padded frame (evaluation); where
            there is no such frame, nobody looks.
    """
    hidden, alphas = hidden.astype(dtype), alphas.astype(dtype)
    one, weights = dtype(1.0), [a if t < length else dtype(0.0) for t, a in enumerate(alphas)]
    quantity = dtype(0.0)
    for weight in weights:
        quantity += weight
    if target is not None:
        weights = [weight * (dtype(target) / (quantity + dtype(1e-8))) for weight in weights]
    held = dtype(0.0)
    state: np.ndarray = np.zeros(hidden.shape[1], dtype)
    tokens, frames, times = [], [], []
    for t, (weight, frame) in enumerate(zip(weights, hidden)):
        token = None
        needed = one - held
        if held + weight >= dtype(THRESHOLD):
            token = state + needed * frame
            share = min(max(float(needed) / max(float(weight), 1e-30), 0.0), 1.0)
            held, state = weight - needed, (weight - needed) * frame
        else:
            held, state = held + weight, state + weight * frame
        if tail is not None and t == length:
            token, share = (state / (held + dtype(1e-10)), 0.0) if held > tail else (None, 0.0)
        # The published code finds its fires afterwards, by what is not all zero.
        if token is not None and t <= length and np.abs(token).sum() != 0.0:
            tokens.append(token)
            frames.append(t)
            times.append(t + share)
    stacked = np.array(tokens, np.float64).reshape(len(tokens), hidden.shape[1])
    return Fired(stacked, frames, times, float(quantity))


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = math.log(math.fsum(math.exp(each - top) for each in logits)) + top
    return [each - total for each in logits]


def smoothed_cross_entropy(logits: np.ndarray, targets: Sequence[int], smoothing: float) -> float:
    """Sum over the rows of `logits` (N, V) of (1 - e - e / (V - 1)) nll + e / (V - 1) sum_v -log p_v."""
    share = smoothing / (logits.shape[1] - 1)
    total = 0.0
    for row, target in zip(logits.tolist(), targets):
        log_probs = log_softmax(row)
        total += (1.0 - smoothing - share) * -log_probs[target] + share * -math.fsum(log_probs)
    return total


def ctc(logits: np.ndarray, labels: Sequence[int], blank: int = 0) -> float:
    """-log of the summed probability of all V^T paths over `logits` (T, V) that collapse to `labels`."""
    log_probs = [log_softmax(row) for row in logits.tolist()]
    alphabet = sorted({blank, *labels})  # a path through any other symbol collapses to something else
    total = 0.0
    for path in itertools.product(alphabet, repeat=len(log_probs)):
        merged = [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]
        if merged == list(labels):
            total += math.exp(math.fsum(row[symbol] for row, symbol in zip(log_probs, path)))
    return -math.log(total) if total > 0.0 else math.inf


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(math.sqrt(float((vector * vector).sum())), 1e-6)


def contrastive(
    student: np.ndarray, teacher: np.ndarray, drawn: Sequence[Sequence[int]], temperature: float
) -> list[float]:
    """Of every position: cross-entropy of its own teacher vector, first in a list with those that it `drew`.

    An anchor's own index among the drawn ones has its logit set to -1e9 (overlap removed).
    """
    losses = []
    for index, anchor in enumerate(student):
        logits = [float(unit(anchor) @ unit(teacher[index]))]
        for other in drawn[index]:
            logits.append(-1e9 if other == index else float(unit(anchor) @ unit(teacher[other])))
        losses.append(-log_softmax([logit / temperature for logit in logits])[0])
    return losses


def squared_errors(student: np.ndarray, teacher: np.ndarray) -> list[float]:
    """Of every position: squared differences, summed over the dimensions."""
    return [math.fsum((a - b) ** 2 for a, b in zip(s, t)) for s, t in zip(student.tolist(), teacher.tolist())]


def project(vectors: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Every row of `vectors` (N, D) through `weight` (E, D) and `bias` (E,): (N, E)."""
    return np.array([[float(row @ vector) + b for row, b in zip(weight, bias)] for vector in vectors])
