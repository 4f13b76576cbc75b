"""Prefix beam search of CTC: all alignments of a label sequence count together.

Sources: Graves et al. 2006 (the sums over alignments), Hannun et al. 2014, arXiv 1408.2873 (the beam of prefixes with a
language model and a weight for length).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retort.decoding.beam import NOTHING
from retort.decoding.greedy import UNSAID
from retort.decoding.histories import Histories
from retort.lm.causal import CausalLM
from retort.nn.masks import valid_mask
from retort.text.tokenizers import BLANK, EOS


@dataclass(frozen=True)
class Prefix:
    """A label sequence and how probable it is.

    Attributes:
        ids: the labels.
        log_prob: log-probability that CTC says just these, summed over the alignments that the beam kept.
        score: that, with the language model's opinion, of the end too, and the weight of length.
    """

    ids: list[int]
    log_prob: float
    score: float


@dataclass(frozen=True)
class Opinion:
    """A language model beside the search.

    Attributes:
        lm: over the student's pieces; None for none.
        lm_weight: of its log-probabilities.
        length_weight: added for every label; without it a language model deletes.
    """

    lm: CausalLM | None = None
    lm_weight: float = 0.0
    length_weight: float = 0.0


@dataclass(frozen=True)
class _Beams:
    """N prefixes of each of B utterances, best first.

    Attributes:
        ids: `(B, N, W)` int64, -1 behind the labels.
        counts: `(B, N)` int64, labels.
        blank, label: `(B, N)` float64, log-probability of the alignments so far that end in a blank, in a label; both
            minus infinity where there is no prefix.
        opinions: `(B, N)` float64, of language model and length.
    """

    ids: Tensor
    counts: Tensor
    blank: Tensor
    label: Tensor
    opinions: Tensor

    @property
    def totals(self) -> Tensor:
        return torch.logaddexp(self.blank, self.label)

    @property
    def last(self) -> Tensor:
        """`(B, N)`, the last label, blank of the empty prefix."""
        places = (self.counts - 1).clamp(min=0)[..., None]
        return self.ids.gather(2, places)[..., 0].masked_fill(self.counts == 0, BLANK)


@torch.inference_mode()
def prefix_beam(
    log_probs: Tensor, lengths: Tensor, beam: int, opinion: Opinion | None = None
) -> list[list[Prefix]]:
    """The most probable label sequences of each utterance, best first: up to `beam`, at least one, all different.

    Every label is tried behind every prefix; what is kept of a frame is up to `beam` prefixes. With a beam that holds
    all there are the sums are exact.

    Args:
        log_probs: `(B, T, V)` of a CTC head; PAD and EOS are never said.
        lengths: `(B,)`, valid frames.
        beam: prefixes kept at every frame.
        opinion: has a say in the ranking.
    """
    opinion = opinion or Opinion()
    device = log_probs.device
    frames = log_probs.double().index_fill(2, torch.tensor(UNSAID, device=device), NOTHING)
    # Behind its end an utterance says blank with certainty, which changes nothing.
    behind = ~valid_mask(lengths, log_probs.shape[1])
    frames = frames.masked_fill(behind[..., None], NOTHING)
    frames[..., BLANK] = frames[..., BLANK].masked_fill(behind, 0.0)
    batch = len(frames)
    zeros = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    beams = _Beams(
        ids=torch.full((batch, 1, 1), -1, device=device),
        counts=torch.zeros(batch, 1, dtype=torch.int64, device=device),
        blank=zeros,
        label=torch.full_like(zeros, NOTHING),
        opinions=zeros,
    )
    histories = None if opinion.lm is None else Histories(opinion.lm, batch, device)
    for frame in frames.unbind(1):
        gains = torch.full_like(frame, opinion.length_weight)[:, None]
        if histories is not None:
            gains = gains + opinion.lm_weight * histories.log_probs
        beams, parents, said = _advance(beams, frame, gains, beam)
        if histories is not None:
            histories.advance(parents, said)
    ends = beams.opinions
    if histories is not None:
        ends = ends + opinion.lm_weight * histories.log_probs[..., EOS]
    return _prefixes(beams, ends)


def _advance(beams: _Beams, frame: Tensor, gains: Tensor, beam: int) -> tuple[_Beams, Tensor, Tensor]:
    """One frame further.

    Args:
        frame: `(B, V)`, log-probabilities.
        gains: `(B, N or 1, V)`, what a label adds to the opinion of each prefix.
        beam: prefixes to keep.

    Returns:
        the new prefixes, which of the old ones each was `(B, K)`, and the label that is now behind it, -1 for none.
    """
    batch, width = beams.counts.shape
    totals, last = beams.totals, beams.last
    alive = totals > NOTHING
    grown = totals[..., None] + frame[:, None]
    # A label behind itself is another one only after a blank.
    again = (beams.blank + frame.gather(1, last))[..., None]
    grown = grown.scatter(2, last[..., None], again)
    grown[..., BLANK] = NOTHING
    same = _continues(beams) & (alive[:, :, None] & alive[:, None, :])
    joined = grown.gather(2, last[:, None].expand(-1, width, -1)).masked_fill(~same, NOTHING)
    blank = totals + frame[:, BLANK, None]
    label = torch.logaddexp(beams.label + frame.gather(1, last), joined.amax(1))
    utterances, parents, children = same.nonzero(as_tuple=True)
    grown[utterances, parents, last[utterances, children]] = NOTHING

    stay = torch.logaddexp(blank, label) + beams.opinions
    opinions = beams.opinions[..., None] + gains
    scores = torch.cat((stay, (grown + opinions).flatten(1)), 1)
    values, best = scores.topk(min(beam, scores.shape[1]))
    labels, missing = frame.shape[1], values == NOTHING
    stays = best < width
    parents = torch.where(stays, best, (best - width).div(labels, rounding_mode="floor"))
    stays |= missing
    said = torch.where(stays, -1, (best - width) % labels)
    rows = torch.arange(batch, device=best.device)[:, None]
    chosen = said.clamp(min=0)
    blank = blank[rows, parents].masked_fill(~stays | missing, NOTHING)
    label = torch.where(stays, label[rows, parents], grown[rows, parents, chosen])
    after = _Beams(
        ids=_longer(beams.ids[rows, parents], beams.counts[rows, parents], said),
        counts=beams.counts[rows, parents] + ~stays,
        blank=blank,
        label=label.masked_fill(missing, NOTHING),
        opinions=torch.where(
            stays, beams.opinions[rows, parents], opinions.expand_as(grown)[rows, parents, chosen]
        ),
    )
    return after, parents, said


def _continues(beams: _Beams) -> Tensor:
    """`(B, N, N)`: whether the second prefix is the first with one more label."""
    width = beams.ids.shape[2]
    inside = torch.arange(width, device=beams.ids.device) < beams.counts[:, :, None, None]
    equal = (beams.ids[:, :, None] == beams.ids[:, None]) | ~inside
    return equal.all(-1) & (beams.counts[:, None] == beams.counts[:, :, None] + 1)


def _longer(ids: Tensor, counts: Tensor, said: Tensor) -> Tensor:
    """`ids (B, K, W)` with `said (B, K)` behind the labels where it is one; wider if need be."""
    if int(counts.max()) == ids.shape[2]:
        ids = torch.nn.functional.pad(ids, (0, 1), value=-1)
    places = counts.clamp(max=ids.shape[2] - 1)[..., None]
    return torch.where(said[..., None] >= 0, ids.scatter(2, places, said[..., None]), ids)


def _prefixes(beams: _Beams, opinions: Tensor) -> list[list[Prefix]]:
    found = []
    for ids, counts, totals, said in zip(
        beams.ids.tolist(), beams.counts.tolist(), beams.totals.tolist(), opinions.tolist()
    ):
        each = [
            Prefix(labels[:count], total, total + extra)
            for labels, count, total, extra in zip(ids, counts, totals, said)
            if total > NOTHING
        ]
        found.append(sorted(each, key=lambda prefix: prefix.score, reverse=True))
    return found
