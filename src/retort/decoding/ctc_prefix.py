"""How probable CTC finds it that an utterance begins with given labels (Watanabe et al. 2017, algorithm 2).

All labels are tried behind a prefix at once, by a product of matrices, and the recursions over frames are cumulative
sums: no step goes from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.decoding.beam import NOTHING
from retort.nn.masks import valid_mask
from retort.text.tokenizers import BLANK


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
        return Alignments(silence, torch.full_like(silence, NOTHING), last)

    def whole(self, before: Alignments) -> Tensor:
        """`(B, N)`: log-probability that an utterance is the prefix and nothing else."""
        ends = self.lengths[:, None, None].expand(-1, before.last.shape[1], 1)
        return torch.logaddexp(before.blank, before.label).gather(2, ends)[..., 0]

    def extended(self, before: Alignments) -> Tensor:
        """`(B, N, V)`: log-probability that it begins with the prefix and each label behind it; of blank undefined."""
        ways = torch.logaddexp(before.blank, before.label)[..., :-1].masked_fill(
            ~self.valid[:, None], NOTHING
        )
        most = ways.amax(-1, keepdim=True)
        most = most.masked_fill(most == NOTHING, 0.0)
        scores = ((ways - most).exp() @ self.probs).log() + most
        again = before.blank[..., :-1] + self._of(before.last)
        again = again.masked_fill(~self.valid[:, None], NOTHING).logsumexp(-1)
        return scores.scatter(2, before.last[..., None], again[..., None])

    def advance(self, before: Alignments, parents: Tensor, said: Tensor) -> Alignments:
        """The prefixes `parents (B, K)`, each with the label `said (B, K)` behind it."""
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        blank, label, last = (each[rows, parents] for each in (before.blank, before.label, before.last))
        ways = torch.where((said == last)[..., None], blank, torch.logaddexp(blank, label))[..., :-1]
        labels = _carried(ways, self._of(said))
        blanks = _carried(
            F.pad(labels, (1, 0), value=NOTHING)[..., :-1],
            self.log_probs[..., BLANK][:, None].expand_as(labels),
        )
        return Alignments(F.pad(blanks, (1, 0), value=NOTHING), F.pad(labels, (1, 0), value=NOTHING), said)

    def _of(self, labels: Tensor) -> Tensor:
        """`(B, K, T)` log-probabilities of `labels (B, K)`."""
        frames = self.log_probs.shape[1]
        return self.log_probs.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, frames))


def _carried(entered: Tensor, kept: Tensor) -> Tensor:
    """x of `x[t] = logaddexp(x[t - 1], entered[t]) + kept[t]`, from nothing on, along the last axis."""
    total = kept.cumsum(-1)
    return total + (entered - (total - kept)).logcumsumexp(-1)
