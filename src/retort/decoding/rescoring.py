"""Rescoring of n-best lists with language models that score whole sentences, and with the CTC head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.fusion import open_fitting_lm
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.transcript import hypothesis_text
from retort.lm.causal import CausalLM
from retort.lm.factory import is_causal_lm
from retort.lm.likelihood import CausalPlm, MaskedPlm
from retort.pretrained.hub import plm_kind
from retort.text.normalise import recase
from retort.text.tokenizers import BLANK, EOS, Tokenizer


class RescoringLM(Protocol):
    """A language model that scores whole sentences."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""

    def score(self, sentences: Sequence[Sequence[int]]) -> list[float]:
        """Log-probability of each sentence, given as the student's token ids without EOS."""


@dataclass(frozen=True)
class TokenRescoringLM:
    """A causal language model over the student's tokens; the score includes EOS."""

    lm: CausalLM

    @property
    def parameters(self) -> int:
        return self.lm.parameters

    def score(self, sentences: Sequence[Sequence[int]]) -> list[float]:
        return [float(each.double().sum()) for each in self.lm.score(sentences)]


@dataclass(frozen=True)
class TextRescoringLM:
    """A pretrained language model that scores the text of the sentences with its own tokenizer.

    Attributes:
        plm: the language model.
        tokenizer: the student's.
        case: case of the text: `keep`, `upper` or `lower`.
    """

    plm: CausalPlm | MaskedPlm
    tokenizer: Tokenizer
    case: str

    @property
    def parameters(self) -> int:
        return self.plm.parameters

    def score(self, sentences: Sequence[Sequence[int]]) -> list[float]:
        texts = [recase(hypothesis_text(self.tokenizer, ids), self.case) for ids in sentences]
        different = list(dict.fromkeys(texts))
        scores = dict(zip(different, self.plm.score(different)))
        return [scores[text] for text in texts]


def open_rescoring_lm(options: DecodingOptions, tokenizer: Tokenizer, device: torch.device | str) -> RescoringLM:
    """Open the model `options.rescore`: one of `retort lm train` over the student's tokens, or a pretrained one.

    Raises:
        UserError: it cannot be opened, has another vocabulary than the student, or lacks the head of its
            kind.
    """
    name, kind = options.rescore, options.rescore_kind
    if kind != "masked" and is_causal_lm(name):
        return TokenRescoringLM(open_fitting_lm(name, tokenizer, device))
    if kind == "auto":
        kind = plm_kind(name)
    plm = CausalPlm(name, device) if kind == "causal" else MaskedPlm(name, device)
    return TextRescoringLM(plm, tokenizer, options.rescore_case)


def rescore(
    found: Sequence[Sequence[Hypothesis]], lm: RescoringLM, weight: float, length_weight: float
) -> list[list[Hypothesis]]:
    """Rescore the n-best lists of several utterances; all sentences are scored in one call.

    The score is the search score plus `weight` times the LM's log-probability plus `length_weight` for each
    token. Ties keep their order.
    """
    lm_scores = iter(lm.score([each.ids for candidates in found for each in candidates]))
    scored = [
        [
            replace(
                each,
                score=each.score + weight * next(lm_scores) + length_weight * len(each.ids),
            )
            for each in candidates
        ]
        for candidates in found
    ]
    return [sorted(candidates, key=lambda each: each.score, reverse=True) for candidates in scored]


def ctc_rescored(
    found: Sequence[Sequence[Hypothesis]],
    log_probs: Tensor,
    lengths: Tensor,
    weight: float,
    faithful: bool = False,
) -> list[list[Hypothesis]]:
    """Rescore n-best lists with CTC: (1 - w) times the score plus w times the CTC log-probability.

    Hypotheses with more labels than CTC can align to the frames are dropped; if all are dropped, the list
    stays unchanged. Ties keep their order.

    Args:
        found: n-best lists of B utterances.
        log_probs: `(B, T, V)` of the CTC head.
        lengths: `(B,)`.
        weight: w, from 0 to 1.
        faithful: whether EOS is the last label of a sequence for the CTC head.
    """
    ranked = []
    for candidates, own, frames in zip(found, log_probs, lengths.tolist()):
        sentences = [[*each.ids, *[EOS] * faithful] for each in candidates]
        ctc_scores = ctc_log_likelihoods(own[:frames], sentences)
        rescored = [
            replace(each, score=(1.0 - weight) * each.score + weight * ctc_score)
            for each, ctc_score in zip(candidates, ctc_scores)
            if math.isfinite(ctc_score)
        ]
        ranked.append(sorted(rescored, key=lambda each: each.score, reverse=True) or list(candidates))
    return ranked


def ctc_log_likelihoods(log_probs: Tensor, sentences: Sequence[Sequence[int]]) -> list[float]:
    """CTC log-probability of each sentence, summed over all alignments; minus infinity if none fits the frames.

    Args:
        log_probs: `(T, V)`.
        sentences: token ids without blank.
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
