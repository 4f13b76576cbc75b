"""Prefix beam search of CTC: all alignments of a label sequence count together.

Sources: Graves et al. 2006 (the sums over alignments), Hannun et al. 2014, arXiv 1408.2873 (the beam of prefixes with a
language model and a weight for length).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.cif import NEG_INF, ScoredHypothesis
from retort.decoding.greedy import NOT_FRAME_LABELS, Hypothesis
from retort.decoding.prefix_tree import NO_NODE, NO_PARENT, ROOT, Joining, LmScores, PrefixTree
from retort.nn.ctc import label_frames
from retort.nn.masks import valid_mask
from retort.text.tokenizers import BLANK, EOS, PAD


@dataclass(frozen=True)
class Prefix:
    """A label sequence and how probable it is.

    Attributes:
        ids: the labels.
        log_prob: log-probability that CTC says just these, summed over the alignments that the beam kept.
        score: that, with the scorer's opinion, of the end too, and the weight of length.
    """

    ids: list[int]
    log_prob: float
    score: float


@dataclass(frozen=True)
class _Beams:
    """N prefixes of each of B utterances, best first.

    Attributes:
        nodes: `(B, N)` int64, the labels, as a node of the tree.
        parents: `(B, N)`, the node before the last label.
        last: `(B, N)`, that label, blank of the empty prefix.
        blank, label: `(B, N)` float64, log-probability of the alignments so far that end in a blank, in a label; both
            minus infinity where there is no prefix.
        opinions: `(B, N)` float64, of language model and length.
    """

    nodes: Tensor
    parents: Tensor
    last: Tensor
    blank: Tensor
    label: Tensor
    lm_scores: Tensor

    @property
    def totals(self) -> Tensor:
        return torch.logaddexp(self.blank, self.label)


@torch.inference_mode()
def prefix_beam(
    log_probs: Tensor,
    lengths: Tensor,
    beam: int,
    scorer: Joining | None = None,
    length_weight: float = 0.0,
) -> list[list[Prefix]]:
    """The most probable label sequences of each utterance, best first: up to `beam`, at least one, all different.

    Every label is tried behind every prefix; what is kept of a frame is up to `beam` prefixes. With a beam that holds
    all there are the sums are exact.

    Args:
        log_probs: `(B, T, V)` of a CTC head; PAD and EOS are never said.
        lengths: `(B,)`, valid frames.
        beam: prefixes kept at every frame.
        scorer: has its say of every label, and of EOS behind the last frame.
        length_weight: added for every label; without it a language model deletes.
    """
    device = log_probs.device
    frames = log_probs.double().index_fill(2, torch.tensor(NOT_FRAME_LABELS, device=device), NEG_INF)
    # Behind its end an utterance says blank with certainty, which changes nothing.
    padding = ~valid_mask(lengths, log_probs.shape[1])
    frames = frames.masked_fill(padding[..., None], NEG_INF)
    frames[..., BLANK] = frames[..., BLANK].masked_fill(padding, 0.0)
    tree = PrefixTree()
    lm_scores = None if scorer is None else LmScores(scorer, device)
    beams = _start(len(frames), device)
    for frame in frames.unbind(1):
        gains = torch.full_like(frame, length_weight)[:, None]
        if lm_scores is not None:
            gains = gains + lm_scores.after_all(beams.nodes, tree)
        beams = _advance(beams, frame, gains, beam, tree)
    ends = beams.lm_scores
    if lm_scores is not None:
        ends = ends + lm_scores.after_all(beams.nodes, tree)[..., EOS]
    return _prefixes(beams, ends, tree)


def _start(batch: int, device: torch.device) -> _Beams:
    nodes = torch.full((batch, 1), ROOT, device=device)
    zeros = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    return _Beams(
        nodes=nodes,
        parents=torch.full_like(nodes, NO_PARENT),
        last=torch.full_like(nodes, BLANK),
        blank=zeros,
        label=torch.full_like(zeros, NEG_INF),
        lm_scores=zeros,
    )


def _advance(beams: _Beams, frame: Tensor, gains: Tensor, beam: int, tree: PrefixTree) -> _Beams:
    """One frame further.

    Args:
        frame: `(B, V)`, log-probabilities.
        gains: `(B, N or 1, V)`, what a label adds to the opinion of each prefix.
        beam: prefixes to keep.
    """
    batch, width = beams.nodes.shape
    totals, last = beams.totals, beams.last
    grown = totals[..., None] + frame[:, None]
    # A label behind itself is another one only after a blank.
    again = (beams.blank + frame.gather(1, last))[..., None]
    grown = grown.scatter(2, last[..., None], again)
    grown[..., BLANK] = NEG_INF
    # Whether the second prefix is the first with one more label.
    same = beams.nodes[:, :, None] == beams.parents[:, None]
    joined = grown.gather(2, last[:, None].expand(-1, width, -1)).masked_fill(~same, NEG_INF)
    blank = totals + frame[:, BLANK, None]
    label = torch.logaddexp(beams.label + frame.gather(1, last), joined.amax(1))
    utterances, parents, children = same.nonzero(as_tuple=True)
    grown[utterances, parents, last[utterances, children]] = NEG_INF

    stay = torch.logaddexp(blank, label) + beams.lm_scores
    lm_scores = beams.lm_scores[..., None] + gains
    scores = torch.cat((stay, (grown + lm_scores).flatten(1)), 1)
    values, best = scores.topk(min(beam, scores.shape[1]))
    labels, missing = frame.shape[1], values == NEG_INF
    stays = (best < width) | missing
    parents = torch.where(best < width, best, (best - width).div(labels, rounding_mode="floor"))
    tokens = torch.where(stays, last.gather(1, parents), (best - width) % labels)
    rows = torch.arange(batch, device=best.device)[:, None]
    before = beams.nodes[rows, parents]
    nodes = before.masked_fill(missing, NO_NODE)
    nodes[~stays] = tree.children(before[~stays], tokens[~stays])
    label = torch.where(stays, label[rows, parents], grown[rows, parents, tokens])
    lm_scores = lm_scores.expand_as(grown)[rows, parents, tokens]
    return _Beams(
        nodes=nodes,
        parents=torch.where(stays, beams.parents[rows, parents], before).masked_fill(missing, NO_PARENT),
        last=tokens,
        blank=blank[rows, parents].masked_fill(~stays | missing, NEG_INF),
        label=label.masked_fill(missing, NEG_INF),
        lm_scores=torch.where(stays, beams.lm_scores[rows, parents], lm_scores),
    )


def _prefixes(beams: _Beams, lm_scores: Tensor, tree: PrefixTree) -> list[list[Prefix]]:
    found = []
    for nodes, totals, extras in zip(beams.nodes.tolist(), beams.totals.tolist(), lm_scores.tolist()):
        each = [
            Prefix(tree.tokens(node), total, total + extra)
            for node, total, extra in zip(nodes, totals, extras)
            if node != NO_NODE
        ]
        found.append(sorted(each, key=lambda prefix: prefix.score, reverse=True))
    return found


def with_times(
    found: Sequence[Sequence[ScoredHypothesis]], log_probs: Tensor, lengths: Tensor, *, ctc_scores: bool
) -> list[list[ScoredHypothesis]]:
    """The candidates with times: each token takes the frame where the best path of CTC through all of them has it.

    Where an utterance has too few frames for a candidate's tokens, these share its frames evenly.

    Args:
        found: of B utterances.
        log_probs: `(B, T, V)` of the CTC head.
        lengths: `(B,)`.
        heard: whether the log-probabilities of the tokens are CTC's, too, at that frame, or the candidate's own.
    """
    columns = [
        _timed(rank, log_probs, lengths, ctc_scores)
        for rank in zip_longest(*found)  # one rank of all utterances at a time: a list may be long
    ]
    rows: list[list[ScoredHypothesis]] = [[] for _ in found]
    for column in columns:
        for row, each in zip(rows, column):
            if each is not None:
                row.append(each)
    return rows


def _timed(
    candidates: Sequence[ScoredHypothesis | None], log_probs: Tensor, lengths: Tensor, ctc_scores: bool
) -> list[ScoredHypothesis | None]:
    texts = [[] if each is None else each.hypothesis.ids for each in candidates]
    most = max(map(len, texts))
    labels = torch.full((len(texts), most), PAD, device=log_probs.device)
    for row, ids in enumerate(texts):
        labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    counts = torch.tensor([len(ids) for ids in texts], device=log_probs.device)
    frames, valid = label_frames(log_probs, lengths, labels, counts, blank=BLANK)
    utterances = torch.arange(len(texts), device=log_probs.device)[:, None]
    scores_of_tokens = log_probs[utterances, frames, labels].tolist()
    timed: list[ScoredHypothesis | None] = []
    for each, places, valid_row, scores, length in zip(
        candidates, frames.tolist(), valid.tolist(), scores_of_tokens, lengths.tolist()
    ):
        if each is None:
            timed.append(None)
            continue
        ids, own = each.hypothesis.ids, each.hypothesis.log_probs
        size = len(ids)
        starts, ends = [float(place) for place in places[:size]], [place + 1.0 for place in places[:size]]
        if not all(valid_row[:size]):
            starts = [place * length / size for place in range(size)]
            ends = [(place + 1) * length / size for place in range(size)]
        hypothesis = Hypothesis(ids, scores[:size] if ctc_scores else own, ends, starts)
        timed.append(replace(each, hypothesis=hypothesis))
    return timed


@dataclass(frozen=True)
class Alignments:
    """Of N prefixes of each of B utterances, the alignments of each that end at each frame.

    Attributes:
        blank, label: `(B, N, 1 + T)` float64, log-probability of those that end in a blank, in a label; the first is
            before all frames.
        last: `(B, N)` int64, the last label, blank of the empty prefix.
    """

    blank: Tensor
    label: Tensor
    last: Tensor


class CtcPrefixes:
    """Scores prefixes of B utterances.

    Args:
        log_probs: `(B, T, V)` of a CTC head, finite within the lengths.
        lengths: `(B,)`, valid frames.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor) -> None:
        self.valid = valid_mask(lengths, log_probs.shape[1])
        self.lengths = lengths
        self.log_probs = log_probs.double().masked_fill(~self.valid[..., None], 0.0)
        self.probs = self.log_probs.exp()

    def start(self) -> Alignments:
        """The empty prefix of each utterance."""
        silence = F.pad(self.log_probs[..., BLANK].cumsum(1), (1, 0))[:, None]
        last = torch.full(silence.shape[:2], BLANK, device=silence.device)
        return Alignments(silence, torch.full_like(silence, NEG_INF), last)

    def whole(self, before: Alignments) -> Tensor:
        """`(B, N)`: log-probability that an utterance is the prefix and nothing else."""
        ends = self.lengths[:, None, None].expand(-1, before.last.shape[1], 1)
        return torch.logaddexp(before.blank, before.label).gather(2, ends)[..., 0]

    def extended(self, before: Alignments) -> Tensor:
        """`(B, N, V)`: log-probability that it begins with the prefix and each label behind it; of blank undefined."""
        paths = torch.logaddexp(before.blank, before.label)[..., :-1].masked_fill(
            ~self.valid[:, None], NEG_INF
        )
        most = paths.amax(-1, keepdim=True)
        most = most.masked_fill(most == NEG_INF, 0.0)
        scores = ((paths - most).exp() @ self.probs).log() + most
        again = before.blank[..., :-1] + self._label_log_probs(before.last)
        again = again.masked_fill(~self.valid[:, None], NEG_INF).logsumexp(-1)
        return scores.scatter(2, before.last[..., None], again[..., None])

    def advance(self, before: Alignments, parents: Tensor, tokens: Tensor) -> Alignments:
        """The prefixes `parents (B, K)`, each with the label `tokens (B, K)` behind it."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        blank, label, last = (each[rows, parents] for each in (before.blank, before.label, before.last))
        paths = torch.where((tokens == last)[..., None], blank, torch.logaddexp(blank, label))[..., :-1]
        labels = _carried(paths, self._label_log_probs(tokens))
        blanks = _carried(
            F.pad(labels, (1, 0), value=NEG_INF)[..., :-1],
            self.log_probs[..., BLANK][:, None].expand_as(labels),
        )
        return Alignments(F.pad(blanks, (1, 0), value=NEG_INF), F.pad(labels, (1, 0), value=NEG_INF), tokens)

    def _label_log_probs(self, labels: Tensor) -> Tensor:
        """`(B, K, T)` log-probabilities of `labels (B, K)`."""
        frames = self.log_probs.shape[1]
        return self.log_probs.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, frames))


def _carried(entered: Tensor, stay: Tensor) -> Tensor:
    """x of `x[t] = logaddexp(x[t - 1], entered[t]) + stay[t]`, from nothing on, along the last axis."""
    total = stay.cumsum(-1)
    return total + (entered - (total - stay)).logcumsumexp(-1)
