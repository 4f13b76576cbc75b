"""N-best lists ranked anew with what the student's own CTC head finds of each hypothesis, over all its alignments.

The dual of attention rescoring (Zhang et al. 2020, arXiv 2012.05481), for students whose search does not ask that head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.beam import Candidate
from retort.text.tokenizers import BLANK, EOS


def ctc_rescored(
    found: Sequence[Sequence[Candidate]],
    log_probs: Tensor,
    lengths: Tensor,
    weight: float,
    faithful: bool = False,
) -> list[list[Candidate]]:
    """Rank the candidates of several utterances anew: (1 - w) of what each had, w of the CTC head's log-probability.

    What the head cannot say, having too few frames for it, goes, unless that is all there is: then the list stays as it
    is. Among equals the order stays.

    Args:
        found: of B utterances, best first.
        log_probs: `(B, T, V)` of the CTC head.
        lengths: `(B,)`.
        weight: w, from 0 to 1.
        faithful: whether EOS is a label of the head, behind the others.
    """
    ranked = []
    for candidates, own, frames in zip(found, log_probs, lengths.tolist()):
        sentences = [[*each.hypothesis.ids, *[EOS] * faithful] for each in candidates]
        opinions = ctc_log_likelihoods(own[:frames], sentences)
        anew = [
            replace(each, score=(1.0 - weight) * each.score + weight * opinion)
            for each, opinion in zip(candidates, opinions)
            if math.isfinite(opinion)
        ]
        ranked.append(sorted(anew, key=lambda each: each.score, reverse=True) or list(candidates))
    return ranked


def ctc_log_likelihoods(log_probs: Tensor, sentences: Sequence[Sequence[int]]) -> list[float]:
    """The log-probability of each sentence, all alignments added; minus infinity of what does not fit into the frames.

    Args:
        log_probs: `(T, V)`.
        sentences: of tokens, none of them blank.
    """
    frames, count = len(log_probs), len(sentences)
    if not frames:
        return [-math.inf if each else 0.0 for each in sentences]
    costs = F.ctc_loss(
        log_probs.double()[:, None].expand(-1, count, -1),
        torch.tensor(
            [token for each in sentences for token in each], dtype=torch.int64, device=log_probs.device
        ),
        torch.full((count,), frames),
        torch.tensor([len(each) for each in sentences]),
        blank=BLANK,
        reduction="none",
    )
    return [-cost for cost in costs.tolist()]
