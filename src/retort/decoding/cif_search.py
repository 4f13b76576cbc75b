"""The search of a CIF student: greedy or with a beam, with language models and its CTC head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.alignment import with_times
from retort.decoding.beam import Candidate, Scorer, beam_fired
from retort.decoding.ctc_scorer import CtcPrefixScorer
from retort.decoding.ctc_search import untimed
from retort.decoding.fusion import Summed
from retort.decoding.greedy import ctc_greedy, greedy_fired
from retort.decoding.piece_search import PieceSearch, singly
from retort.decoding.prefix_beam import prefix_beam
from retort.nn.cif import FiredTokens
from retort.nn.ctc import label_frames
from retort.students.cif import CifStudent, fire_at
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS


class CifSearch(PieceSearch[CifStudent]):
    """From fired embeddings to n-best lists; the arguments are those of :class:`PieceSearch`.

    With `mode: joint` the score of a hypothesis is, at every token, (1 - w) of the decoder's and w of the CTC prefix
    score, w being `ctc_weight`. With `mode: attention_rescoring` the n-best list is that of the CTC head, each hypothesis
    with fires of its own, and the decoder rescores it (as Zhang et al. 2020, arXiv 2012.05481, with an attention decoder).
    """

    def __call__(self, encoded: Encoded) -> list[list[Candidate]]:
        """All that the search keeps of each utterance; without a language model greedy for beam 1."""
        if self.options.mode == "attention_rescoring":
            return self.ranked(self._rescored(encoded), encoded)
        return self.fired(self.student.fire(encoded), encoded)

    def fired(self, fired: FiredTokens, encoded: Encoded | None = None) -> list[list[Candidate]]:
        """The same of embeddings that were fired already."""
        joint = self.options.mode == "joint"
        if self.greedy and not joint:
            return singly(greedy_fired(self.student, fired, encoded))
        scorer: Scorer | None = self.scorer
        if joint:
            scorer = self._joined(encoded)
        return self.ranked(beam_fired(self.student, fired, self.options.beam, scorer, encoded), encoded)

    def heard(self, encoded: Encoded) -> list[list[int]] | None:
        """Tokens of the CTC head's best path; None without such a head."""
        return ctc_greedy(self.student, encoded) if isinstance(self.student, HasCtc) else None

    def _joined(self, encoded: Encoded | None) -> Scorer:
        """The CTC prefix score, and the language model's if there is one; the decoder's weight is 1."""
        if encoded is None:
            raise ValueError("a joint search needs the encoder's frames")
        share = self.options.ctc_weight
        ctc = CtcPrefixScorer(ctc_log_probs(self.student, encoded), encoded.lengths, share / (1.0 - share))
        return ctc if self.scorer is None else Summed([ctc, self.scorer])

    @torch.inference_mode()
    def _rescored(self, encoded: Encoded) -> list[list[Candidate]]:
        """The CTC head's n-best list, scored by both."""
        log_probs, weight = ctc_log_probs(self.student, encoded), self.options.ctc_weight
        prefixes = prefix_beam(log_probs, encoded.lengths, self.options.beam, self.scorer)
        found = []
        for row, (own, candidates) in enumerate(zip(prefixes, untimed(prefixes))):
            length = encoded.lengths[row : row + 1]
            frames = Encoded(encoded.hidden[row : row + 1, : max(int(length), 1)], length)
            scored = forced_scores(
                self.student, frames, log_probs[row : row + 1, : max(int(length), 1)], [each.ids for each in own]
            )
            ranked = []
            for prefix, candidate, (tokens, end) in zip(own, candidates, scored):
                others = prefix.score - prefix.log_prob
                score = weight * prefix.log_prob + (1.0 - weight) * (sum(tokens) + end) + others
                ranked.append(Candidate(replace(candidate.hypothesis, log_probs=tokens), score))
            found.append(sorted(ranked, key=lambda each: each.score, reverse=True))
        return with_times(found, log_probs, encoded.lengths, heard=False)


def forced_scores(
    student: CifStudent, encoded: Encoded, log_probs: Tensor, sentences: Sequence[Sequence[int]]
) -> list[tuple[list[float], float]]:
    """The decoder's log-probabilities of given sentences, each fired where the CTC head's best path has its tokens.

    Args:
        encoded: of one utterance.
        log_probs: `(1, T, V)` of its CTC head.
        sentences: of tokens, without EOS.

    Returns:
        of each sentence its tokens' log-probabilities, and that of EOS.
    """
    count, device = len(sentences), log_probs.device
    lengths = torch.tensor([len(each) for each in sentences], device=device)
    said = torch.full((count, int(lengths.max()) + 1), EOS, device=device)
    for row, each in enumerate(sentences):
        said[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
    repeated = Encoded(encoded.hidden.expand(count, -1, -1), encoded.lengths.expand(count))
    frames, _ = label_frames(
        log_probs.expand(count, -1, -1), repeated.lengths, said[:, :-1], lengths, blank=BLANK
    )
    fired = fire_at(repeated, frames, lengths)
    if fired.embeddings.shape[1] == 0:
        return [([], 0.0) for _ in sentences]
    previous = F.pad(said, (1, 0), value=EOS)[:, :-1]
    logits = student.decode(repeated, fired, previous)
    scores = logits.float().log_softmax(-1).gather(-1, said[..., None])[..., 0].tolist()
    return [(each[:size], each[size]) for each, size in zip(scores, lengths.tolist())]
