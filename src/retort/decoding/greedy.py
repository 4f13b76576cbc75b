"""Greedy decoding, a batch at a time, with cached keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from retort.decoding.hypothesis import NEVER_EMITTED, NOT_FRAME_LABELS, Hypothesis, from_peaks, until_eos
from retort.nn.cif import FiredTokens
from retort.nn.ctc import greedy_peaks
from retort.students.cif import CifStudent
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS


@torch.inference_mode()
def greedy(student: CifStudent, features: Tensor, feature_lengths: Tensor) -> list[Hypothesis]:
    """Greedy decoding: the most probable token at every fire.

    Args:
        student: student in eval mode.
        features: `(B, T, bins)` after CMVN.
        feature_lengths: `(B,)`.
    """
    encoded = student.encode(features, feature_lengths)
    return greedy_fired(student, student.fire(encoded), encoded)


def greedy_fired(student: CifStudent, fired: FiredTokens, encoded: Encoded | None = None) -> list[Hypothesis]:
    """Greedy decoding of fired embeddings; each hypothesis is cut at its first EOS.

    Args:
        encoded: encoder output, for a decoder that attends to it (:meth:`CifStudent.start`).
    """
    batch, most = fired.embeddings.shape[:2]
    previous = torch.full((batch,), EOS, device=fired.embeddings.device)
    running = fired.lengths > 0
    state = student.start(fired, encoded)
    tokens, scores = [], []
    for step in range(most):
        logits, state = student.decoder.step(state, previous, fired.embeddings[:, step])
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, NEVER_EMITTED] = float("-inf")
        score, previous = log_probs.max(-1)
        tokens.append(previous)
        scores.append(score)
        running &= (previous != EOS) & (fired.lengths > step + 1)
        if not running.any():
            break
    if not tokens:
        return [Hypothesis([], [], []) for _ in range(batch)]
    all_ids, all_scores = torch.stack(tokens, 1).tolist(), torch.stack(scores, 1).tolist()
    hypotheses = []
    for ids, each, ends, length in zip(
        all_ids, all_scores, fired.fire_times.tolist(), fired.lengths.tolist()
    ):
        hypotheses.append(until_eos(ids[:length], each, ends))
    return hypotheses


def ctc_greedy(student: HasCtc, encoded: Encoded) -> list[list[int]]:
    """Token ids of the CTC head's best path, without repeats and blanks."""
    return [each.ids for each in ctc_best_path(student, encoded)]


@torch.inference_mode()
def ctc_best_path(student: HasCtc, encoded: Encoded) -> list[Hypothesis]:
    """The most probable label of every frame, without repeats and blanks.

    The probability and the time of a token are those of the frame in which it is most probable.
    """
    peaks = greedy_peaks(ctc_log_probs(student, encoded), encoded.lengths, (BLANK, *NOT_FRAME_LABELS))
    return [from_peaks(found) for found in peaks]
