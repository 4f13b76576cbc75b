"""Greedy decoding, a batch at a time, with cached keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS, PAD

NEVER = [BLANK, PAD]
"""Ids that no decoder emits."""


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance.

    Attributes:
        ids: tokens up to the end symbol, which is not among them.
        log_probs: of each token, natural logarithm.
        ends: encoder frame, with its share, at which each token was complete; never descending.
        starts: the same of where each begins; None where a token begins as the one before it ends.
    """

    ids: list[int]
    log_probs: list[float]
    ends: list[float]
    starts: list[float] | None = None


@torch.inference_mode()
def greedy(student: CifStudent, features: Tensor, feature_lengths: Tensor) -> list[Hypothesis]:
    """The most probable token at every fire.

    Args:
        student: in eval mode.
        features: `(B, T, bins)` after CMVN.
        feature_lengths: `(B,)`.
    """
    encoded = student.encode(features, feature_lengths)
    return greedy_fired(student, student.fire(encoded))


def greedy_fired(student: CifStudent, fired: FiredTokens) -> list[Hypothesis]:
    """Greedy decoding of embeddings that were fired already; each hypothesis is cut at its first EOS."""
    batch, most = fired.embeddings.shape[:2]
    previous = torch.full((batch,), EOS, device=fired.embeddings.device)
    running = fired.lengths > 0
    state = student.decoder.start(batch, fired.embeddings)
    tokens, scores = [], []
    for step in range(most):
        logits, state = student.decoder.step(state, previous, fired.embeddings[:, step])
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, NEVER] = float("-inf")
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
        ids = ids[:length]
        count = ids.index(EOS) if EOS in ids else len(ids)
        hypotheses.append(Hypothesis(ids[:count], each[:count], ends[:count]))
    return hypotheses


@torch.inference_mode()
def ctc_greedy(student: CifStudent, encoded: Encoded) -> list[list[int]]:
    """The CTC head's best path without repeats and blanks: whether the encoder hears, whatever the decoder knows."""
    best = student.ctc(encoded.hidden).argmax(-1)
    results = []
    for path, length in zip(best.tolist(), encoded.lengths.tolist()):
        path = path[:length]
        merged = [label for label, before in zip(path, [BLANK, *path]) if label != before]
        results.append([label for label in merged if label not in (BLANK, PAD, EOS)])
    return results
