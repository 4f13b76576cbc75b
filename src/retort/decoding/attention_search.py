"""The search of an attention student: greedy, with decoder and CTC head at once, or one after the other."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from retort.decoding.alignment import with_times
from retort.decoding.beam import Candidate
from retort.decoding.ctc_search import untimed
from retort.decoding.greedy import ctc_greedy
from retort.decoding.joint_beam import JointWeights, greedy_attention, joint_beam, teacher_forced
from retort.decoding.options import DecodingOptions
from retort.decoding.piece_search import PieceSearch, singly
from retort.decoding.prefix_beam import prefix_beam
from retort.decoding.search import Search
from retort.students.attention import AttentionStudent
from retort.students.ctc import ctc_log_probs
from retort.students.student import Encoded
from retort.text.tokenizers import Tokenizer


class AttentionSearch(PieceSearch[AttentionStudent]):
    """From hidden frames to n-best lists; tokens are as sure as the decoder is, and lie where the CTC head has them.

    With `mode: attention_rescoring` the CTC head looks for the list and the decoder ranks it anew (Zhang et al. 2020,
    arXiv 2012.05481).

    Args:
        student: in eval mode, on the device where all of it computes.
        tokenizer: the student's.
        options: what to search with; their `ctc_weight` is the CTC head's, the decoder has the rest to 1.
        before: a search of the same student, whose language model is taken over if it is the same.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """

    weighs_length = True

    def __init__(
        self,
        student: AttentionStudent,
        tokenizer: Tokenizer,
        options: DecodingOptions,
        before: Search | None = None,
    ) -> None:
        super().__init__(student, tokenizer, options, before)
        self.weights = JointWeights(options.ctc_weight, options.length_weight)

    @torch.inference_mode()
    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model greedy for beam 1."""
        log_probs = ctc_log_probs(self.student, encoded)
        if self.options.mode == "attention_rescoring":
            found = self._rescored(encoded, log_probs)
        elif self.greedy:
            found = singly(greedy_attention(self.student, encoded))
        else:
            found = joint_beam(self.student, encoded, self.options.beam, self.weights, self.scorer)
        return self.ranked(with_times(found, log_probs, encoded.lengths, heard=False))

    def heard(self, encoded: Encoded) -> list[list[int]]:
        """Tokens that the CTC head hears, by its best path."""
        return ctc_greedy(self.student, encoded)

    def _rescored(self, encoded: Encoded, log_probs: Tensor) -> list[list[Candidate]]:
        """What the CTC head found, by the same sum of both as in the search with both."""
        options, weight = self.options, self.weights.ctc
        prefixes = prefix_beam(log_probs, encoded.lengths, options.beam, self.scorer, options.length_weight)
        said = teacher_forced(self.student.decoder, encoded, [[each.ids for each in row] for row in prefixes])
        found = []
        for row, candidates, opinions in zip(prefixes, untimed(prefixes), said):
            ranked = []
            for prefix, candidate, (tokens, end) in zip(row, candidates, opinions):
                others = prefix.score - prefix.log_prob
                score = weight * prefix.log_prob + (1.0 - weight) * (sum(tokens) + end) + others
                ranked.append(Candidate(replace(candidate.hypothesis, log_probs=tokens), score))
            found.append(sorted(ranked, key=lambda each: each.score, reverse=True))
        return found
