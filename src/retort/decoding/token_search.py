"""Searches over the student's tokens, with shallow fusion and rescoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.attention import JointWeights, greedy_attention, joint_beam, teacher_forced
from retort.decoding.cif import Scorer, beam_fired
from retort.decoding.ctc import Prefix, prefix_beam, with_times
from retort.decoding.ctc_scorer import CtcPrefixScorer
from retort.decoding.fusion import Fusion, Summed, open_fitting_lm
from retort.decoding.greedy import ctc_best_path, ctc_greedy, greedy_fired
from retort.decoding.hotwords import HotwordScorer
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.prefix_tree import ConcatenableScorer
from retort.decoding.rescoring import ctc_rescored, open_rescoring_lm, rescore
from retort.decoding.search import Search
from retort.decoding.transducer import transducer_beam, transducer_greedy
from retort.lm.causal import CausalLM
from retort.nn.cif import FiredTokens
from retort.nn.ctc import label_frames
from retort.students.attention import AttentionStudent
from retort.students.cif import CifStudent, fire_at
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import BLANK, EOS, Tokenizer

S = TypeVar("S", bound=Student)

HOTWORD_BEAM = 4
"""Smallest beam width of a search with hotwords."""


class TokenSearch(Search, Generic[S]):
    """Base class of searches whose hypotheses are token sequences of the student's vocabulary.

    Args:
        student: student in eval mode, on the device of the search.
        tokenizer: the student's.
        options: decoding options.
        before: an earlier search of the same student; its language model is reused if it is the same one.

    Attributes:
        lm: the language model for shallow fusion, or None.
        scorer: the language model with its weight, as a scorer of the beam search.
        greedy: whether the search is greedy: beam 1, no language model, no length weight and no hotwords.
        beam: beam width; with hotwords at least `HOTWORD_BEAM`.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
    """

    def __init__(
        self, student: S, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None = None
    ) -> None:
        super().__init__(options)
        self.student = student
        self.parameters["student"] = sum(each.numel() for each in student.parameters())
        device = next(student.parameters()).device
        self.lm: CausalLM | None = None
        if options.lm:
            before_lm = before.lm if isinstance(before, TokenSearch) else None
            same = before is not None and before.options.lm == options.lm
            self.lm = before_lm if same and before_lm else open_fitting_lm(options.lm, tokenizer, device)
            self.parameters["lm"] = self.lm.parameters
        self.scorer: ConcatenableScorer | None = None if self.lm is None else Fusion(self.lm, options.lm_weight)
        self.beam = options.beam
        weighed = self.weighs_length and bool(options.length_weight)
        self.greedy = options.beam == 1 and self.lm is None and not weighed
        if options.rescore:
            self.rescoring_lm = open_rescoring_lm(options, tokenizer, device)
            self.parameters["rescore"] = self.rescoring_lm.parameters

    def use_hotwords(self, hotwords: HotwordScorer) -> None:
        """Add the scores of hotwords to those of the search, which then is a beam search."""
        self.scorer = hotwords if self.scorer is None else Summed([self.scorer, hotwords])
        self.greedy, self.beam = False, max(self.options.beam, HOTWORD_BEAM)

    def ranked(self, found: list[list[Hypothesis]], encoded: Encoded | None = None) -> list[list[Hypothesis]]:
        """Rescore n-best lists as the options require: with the CTC head, then with a language model.

        Raises:
            ValueError: rescoring with the CTC head requires encoder output and a CTC head.
        """
        if self.options.mode == "ctc_rescoring":
            if encoded is None or not isinstance(self.student, HasCtc):
                raise ValueError("rescoring with the CTC head requires encoder output")
            log_probs, config = ctc_log_probs(self.student, encoded), self.student.config
            weight = self.options.ctc_weight
            found = ctc_rescored(found, log_probs, encoded.lengths, weight, config.faithful)
        if self.rescoring_lm is None:
            return found
        length_weight = 0.0 if self.weighs_length else self.options.length_weight
        return rescore(found, self.rescoring_lm, self.options.rescore_weight, length_weight)


class CtcSearch(TokenSearch[Student]):
    """Search with the CTC head alone.

    Args:
        student: student in eval mode, with a CTC head, on the device of the search.
        tokenizer: the student's.
        options: decoding options.
        before: an earlier search of the same student; its language model is reused if it is the same one.

    Raises:
        UserError: a language model cannot be opened, or does not fit the student.
        ValueError: the student has no CTC head.
    """

    weighs_length = True

    def __init__(
        self, student: Student, tokenizer: Tokenizer, options: DecodingOptions, before: Search | None = None
    ) -> None:
        super().__init__(student, tokenizer, options, before)
        if not isinstance(student, HasCtc):
            raise ValueError(f"{type(student).__name__} has no CTC head")
        self.head: HasCtc = student

    @torch.inference_mode()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """N-best list of each utterance; for beam 1 without a language model, the best path."""
        if self.greedy:
            return [[each] for each in ctc_best_path(self.head, encoded)]
        log_probs = ctc_log_probs(self.head, encoded)
        options = self.options
        prefixes = prefix_beam(log_probs, encoded.lengths, self.beam, self.scorer, options.length_weight)
        return self.ranked(with_times(untimed(prefixes), log_probs, encoded.lengths, ctc_scores=True))

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]]:
        """Token ids of the best path."""
        return ctc_greedy(self.head, encoded)


def untimed(prefixes: Sequence[Sequence[Prefix]]) -> list[list[Hypothesis]]:
    """Prefixes as hypotheses without times and token probabilities."""
    return [
        [Hypothesis(each.ids, [0.0] * len(each.ids), [], score=each.score) for each in row]
        for row in prefixes
    ]


def _weighted(
    prefixes: Sequence[Prefix], scores: Sequence[tuple[list[float], float]], weight: float
) -> list[Hypothesis]:
    """CTC prefixes ranked by `weight` times the score of CTC plus 1 - `weight` times that of the decoder; untimed.

    Args:
        scores: for each prefix the decoder's log-probabilities of its tokens, and that of EOS.
    """
    ranked = []
    for prefix, (tokens, end) in zip(prefixes, scores):
        others = prefix.score - prefix.log_prob
        score = weight * prefix.log_prob + (1.0 - weight) * (sum(tokens) + end) + others
        ranked.append(Hypothesis(prefix.ids, tokens, [], score=score))
    return sorted(ranked, key=lambda each: each.score, reverse=True)


class AttentionSearch(TokenSearch[AttentionStudent]):
    """Search with an attention decoder and the CTC head; times are those of the CTC head.

    With `mode: attention_rescoring` the n-best list is that of the CTC head, rescored by the decoder (Zhang
    et al. 2020, arXiv 2012.05481). The option `ctc_weight` is the weight of the CTC head; the decoder has
    1 - ctc_weight. Arguments are those of :class:`TokenSearch`.
    """

    weighs_length = True

    @property
    def weights(self) -> JointWeights:
        """Weights of the CTC head and of the length."""
        return JointWeights(self.options.ctc_weight, self.options.length_weight)

    @torch.inference_mode()
    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """N-best list of each utterance; for beam 1 without a language model the search is greedy."""
        log_probs = ctc_log_probs(self.student, encoded)
        if self.options.mode == "attention_rescoring":
            found = self._rescored(encoded, log_probs)
        elif self.greedy:
            found = [[each] for each in greedy_attention(self.student, encoded)]
        else:
            found = joint_beam(self.student, encoded, self.beam, self.weights, self.scorer)
        return self.ranked(with_times(found, log_probs, encoded.lengths, ctc_scores=False))

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]]:
        """Token ids of the CTC head's best path."""
        return ctc_greedy(self.student, encoded)

    def _rescored(self, encoded: Encoded, log_probs: Tensor) -> list[list[Hypothesis]]:
        """The CTC head's n-best list, ranked by the same weighted sum as in the joint search."""
        options, weight = self.options, self.weights.ctc
        prefixes = prefix_beam(log_probs, encoded.lengths, self.beam, self.scorer, options.length_weight)
        forced = teacher_forced(self.student.decoder, encoded, [[each.ids for each in row] for row in prefixes])
        return [_weighted(row, scored, weight) for row, scored in zip(prefixes, forced)]


class CifSearch(TokenSearch[CifStudent]):
    """Search over fired embeddings; arguments are those of :class:`TokenSearch`.

    With `mode: joint` the score of every token is (1 - w) times the decoder's plus w times the CTC prefix
    score, with w = `ctc_weight`. With `mode: attention_rescoring` the n-best list is that of the CTC head;
    the decoder rescores each hypothesis with fires at its own CTC alignment (as Zhang et al. 2020, arXiv
    2012.05481, with an attention decoder).
    """

    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """N-best list of each utterance; for beam 1 without a language model the search is greedy."""
        if self.options.mode == "attention_rescoring":
            return self.ranked(self._rescored(encoded), encoded)
        return self.fired(self.student.fire(encoded), encoded)

    def fired(self, fired: FiredTokens, encoded: Encoded | None = None) -> list[list[Hypothesis]]:
        """N-best lists from fired embeddings."""
        joint = self.options.mode == "joint"
        if self.greedy and not joint:
            return [[each] for each in greedy_fired(self.student, fired, encoded)]
        scorer: Scorer | None = self.scorer
        if joint:
            scorer = self._joined(encoded)
        return self.ranked(beam_fired(self.student, fired, self.beam, scorer, encoded), encoded)

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]] | None:
        """Token ids of the CTC head's best path; None without a CTC head."""
        return ctc_greedy(self.student, encoded) if isinstance(self.student, HasCtc) else None

    def _joined(self, encoded: Encoded | None) -> Scorer:
        """CTC prefix scorer, combined with the language model if there is one, relative to a decoder weight of 1."""
        if encoded is None:
            raise ValueError("a joint search requires encoder output")
        share = self.options.ctc_weight
        ctc = CtcPrefixScorer(ctc_log_probs(self.student, encoded), encoded.lengths, share / (1.0 - share))
        return ctc if self.scorer is None else Summed([ctc, self.scorer])

    @torch.inference_mode()
    def _rescored(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """The CTC head's n-best list, scored by the CTC head and the decoder."""
        log_probs, weight = ctc_log_probs(self.student, encoded), self.options.ctc_weight
        prefixes = prefix_beam(log_probs, encoded.lengths, self.beam, self.scorer)
        found = []
        for row, own in enumerate(prefixes):
            length = encoded.lengths[row : row + 1]
            frames = Encoded(encoded.hidden[row : row + 1, : max(int(length), 1)], length)
            scored = forced_scores(
                self.student, frames, log_probs[row : row + 1, : max(int(length), 1)], [each.ids for each in own]
            )
            found.append(_weighted(own, scored, weight))
        return with_times(found, log_probs, encoded.lengths, ctc_scores=False)


def forced_scores(
    student: CifStudent, encoded: Encoded, log_probs: Tensor, sentences: Sequence[Sequence[int]]
) -> list[tuple[list[float], float]]:
    """Decoder log-probabilities of given sentences, with fires at the best CTC path of each sentence.

    Args:
        encoded: encoder output of one utterance.
        log_probs: `(1, T, V)` of its CTC head.
        sentences: token ids without EOS.

    Returns:
        For each sentence the log-probabilities of its tokens, and that of EOS.
    """
    count, device = len(sentences), log_probs.device
    lengths = torch.tensor([len(each) for each in sentences], device=device)
    targets = torch.full((count, int(lengths.max()) + 1), EOS, device=device)
    for row, each in enumerate(sentences):
        targets[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
    repeated = Encoded(encoded.hidden.expand(count, -1, -1), encoded.lengths.expand(count))
    frames, _ = label_frames(
        log_probs.expand(count, -1, -1), repeated.lengths, targets[:, :-1], lengths, blank=BLANK
    )
    fired = fire_at(repeated, frames, lengths)
    if fired.embeddings.shape[1] == 0:
        return [([], 0.0) for _ in sentences]
    previous = F.pad(targets, (1, 0), value=EOS)[:, :-1]
    logits = student.decode(repeated, fired, previous)
    scores = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0].tolist()
    return [(each[:size], each[size]) for each, size in zip(scores, lengths.tolist())]


class TransducerSearch(TokenSearch[TransducerStudent]):
    """Search of a transducer; arguments are those of :class:`TokenSearch`."""

    weighs_length = True

    def __call__(self, encoded: Encoded) -> list[list[Hypothesis]]:
        """N-best list of each utterance; for beam 1 without a language model and length weight the search is greedy."""
        if self.greedy:
            symbols = self.student.config.transducer.symbols
            return [[each] for each in transducer_greedy(self.student, encoded, symbols)]
        options = self.options
        found = transducer_beam(self.student, encoded, self.beam, self.scorer, options.length_weight)
        return self.ranked(found, encoded)

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]] | None:
        """Token ids of the CTC head's best path; None without a CTC head."""
        return ctc_greedy(self.student, encoded) if self.student.config.ctc_weight > 0.0 else None
