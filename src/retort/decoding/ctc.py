"""Prefix beam search for CTC, token times from CTC alignments, and CTC prefix scores.

Sources: Graves et al. 2006 (sums over alignments), Hannun et al. 2014, arXiv 1408.2873 (prefix beam search
with a language model and a length weight).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.cif import NEG_INF
from retort.decoding.hypothesis import NOT_FRAME_LABELS, Hypothesis
from retort.decoding.prefix_tree import NO_NODE, NO_PARENT, ROOT, ConcatenableScorer, LmScores, PrefixTree
from retort.nn.ctc import label_frames
from retort.nn.masks import valid_mask
from retort.text.tokenizers import BLANK, EOS, PAD


@dataclass(frozen=True)
class Prefix:
    """A label sequence with its scores.

    Attributes:
        ids: the labels.
        log_prob: CTC log-probability of the sequence, summed over the alignments in the beam.
        score: `log_prob` plus the LM score, including EOS, and the length weight.
    """

    ids: list[int]
    log_prob: float
    score: float


@dataclass(frozen=True)
class _Beams:
    """N prefixes of each of B utterances, best first.

    Attributes:
        nodes: `(B, N)` int64, node of the label sequence in the prefix tree.
        parents: `(B, N)`, node of the sequence without its last label.
        last: `(B, N)`, the last label; blank for the empty prefix.
        blank, label: `(B, N)` float64, log-probability of the alignments that end in a blank or in a label;
            both are minus infinity for a missing prefix.
        lm_scores: `(B, N)` float64, scores of the language model and the length weight.
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
    scorer: ConcatenableScorer | None = None,
    length_weight: float = 0.0,
) -> list[list[Prefix]]:
    """The n-best list of each utterance: up to `beam` different label sequences, at least one, best first.

    Every prefix is extended by every label; `beam` prefixes are kept at each frame. With a beam that holds
    all prefixes the sums are exact.

    Args:
        log_probs: `(B, T, V)` of a CTC head; PAD and EOS are never emitted.
        lengths: `(B,)`, valid frames.
        beam: number of prefixes.
        scorer: scores every label, and EOS after the last frame.
        length_weight: score added for every label; without it a language model causes deletions.
    """
    device = log_probs.device
    frames = log_probs.double().index_fill(2, torch.tensor(NOT_FRAME_LABELS, device=device), NEG_INF)
    # Padded frames emit a blank with probability 1, which changes nothing.
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
    """Extend the prefixes by one frame.

    Args:
        frame: `(B, V)`, log-probabilities.
        gains: `(B, N or 1, V)`, LM score and length weight of each label after each prefix.
        beam: number of prefixes to keep.
    """
    batch, width = beams.nodes.shape
    totals, last = beams.totals, beams.last
    grown = totals[..., None] + frame[:, None]
    # A repeated label is a new label only after a blank.
    again = (beams.blank + frame.gather(1, last))[..., None]
    grown = grown.scatter(2, last[..., None], again)
    grown[..., BLANK] = NEG_INF
    # Whether the second prefix is the first one extended by one label.
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
    found: Sequence[Sequence[Hypothesis]], log_probs: Tensor, lengths: Tensor, *, ctc_scores: bool
) -> list[list[Hypothesis]]:
    """Add times to hypotheses: each token gets the frame at which the best CTC path through all of them emits it.

    Where an utterance has too few frames for the tokens, its frames are divided evenly among them.

    Args:
        found: n-best lists of B utterances.
        log_probs: `(B, T, V)` of the CTC head.
        lengths: `(B,)`.
        ctc_scores: replace the log-probabilities of the tokens by those of CTC at these frames.
    """
    columns = [
        _timed(rank, log_probs, lengths, ctc_scores)
        for rank in zip_longest(*found)  # one rank of all utterances at a time, since lists may be long
    ]
    rows: list[list[Hypothesis]] = [[] for _ in found]
    for column in columns:
        for row, each in zip(rows, column):
            if each is not None:
                row.append(each)
    return rows


def _timed(
    candidates: Sequence[Hypothesis | None], log_probs: Tensor, lengths: Tensor, ctc_scores: bool
) -> list[Hypothesis | None]:
    texts = [[] if each is None else each.ids for each in candidates]
    most = max(map(len, texts))
    labels = torch.full((len(texts), most), PAD, device=log_probs.device)
    for row, ids in enumerate(texts):
        labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    counts = torch.tensor([len(ids) for ids in texts], device=log_probs.device)
    frames, valid = label_frames(log_probs, lengths, labels, counts, blank=BLANK)
    utterances = torch.arange(len(texts), device=log_probs.device)[:, None]
    scores_of_tokens = log_probs[utterances, frames, labels].tolist()
    timed: list[Hypothesis | None] = []
    for each, places, valid_row, scores, length in zip(
        candidates, frames.tolist(), valid.tolist(), scores_of_tokens, lengths.tolist()
    ):
        if each is None:
            timed.append(None)
            continue
        size = len(each.ids)
        starts, ends = [float(place) for place in places[:size]], [place + 1.0 for place in places[:size]]
        if not all(valid_row[:size]):
            starts = [place * length / size for place in range(size)]
            ends = [(place + 1) * length / size for place in range(size)]
        timed.append(replace(each, log_probs=scores[:size] if ctc_scores else each.log_probs, ends=ends, starts=starts))
    return timed


@dataclass(frozen=True)
class Alignments:
    """CTC forward variables of N prefixes of each of B utterances, by the frame at which the alignments end.

    Attributes:
        blank, label: `(B, N, 1 + T)` float64, log-probability of the alignments that end in a blank or in a
            label; index 0 is before the first frame.
        last: `(B, N)` int64, the last label; blank for the empty prefix.
    """

    blank: Tensor
    label: Tensor
    last: Tensor


class CtcPrefixes:
    """CTC prefix scores for B utterances.

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
        """`(B, N)`: log-probability that the whole utterance is the prefix."""
        ends = self.lengths[:, None, None].expand(-1, before.last.shape[1], 1)
        return torch.logaddexp(before.blank, before.label).gather(2, ends)[..., 0]

    def extended(self, before: Alignments) -> Tensor:
        """`(B, N, V)`: log-probability that the utterance starts with the prefix and each next label;
        undefined for blank."""
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
        """Extend the prefixes `parents (B, K)` by the labels `tokens (B, K)`."""
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
    """Solve `x[t] = logaddexp(x[t - 1], entered[t]) + stay[t]` for x along the last axis, starting from minus
    infinity."""
    total = stay.cumsum(-1)
    return total + (entered - (total - stay)).logcumsumexp(-1)
