"""Best paths of CTC: through given labels, and over all labels."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from retort.common.peaks import Peak, path_peaks

_NEVER = -1e30


@torch.no_grad()
def greedy_peaks(log_probs: Tensor, lengths: Tensor, skipped: Collection[int]) -> list[list[Peak]]:
    """Greedy decoding: the most probable label of every frame, without repeats and without `skipped`, which
    includes the blank.

    Args:
        log_probs: `(B, T, V)`.
        lengths: `(B,)`, valid frames.
    """
    best, labels = log_probs.max(-1)
    return [
        path_peaks(path[:length], scores, skipped)
        for path, scores, length in zip(labels.tolist(), best.tolist(), lengths.tolist())
    ]


@torch.no_grad()
def label_frames(
    log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor, *, blank: int = 0
) -> tuple[Tensor, Tensor]:
    """Frames of the labels on the best path, each the most probable one of its label (Viterbi).

    Args:
        log_probs: `(B, T, V)` float.
        lengths: `(B,)` int64, valid frames.
        labels: `(B, U)` int64; values beyond `label_lengths` are ignored.
        label_lengths: `(B,)` int64.
        blank: id of the blank.

    Returns:
        Frames `(B, U)` int64, and valid `(B, U)` bool: false beyond the labels and for utterances with too
        few frames for their labels.
    """
    batch, count = labels.shape
    if count == 0:
        return labels, labels.bool()
    states = torch.full((batch, 2 * count + 1), blank, device=labels.device)
    states[:, 1::2] = labels
    emitted = log_probs.float().gather(2, states[:, None, :].expand(-1, log_probs.shape[1], -1))
    skips = F.pad((states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2]), (2, 0))
    path, possible = _best_path(emitted, skips, lengths, label_lengths)
    own = path[:, None, :] == torch.arange(1, 2 * count + 1, 2, device=labels.device)[None, :, None]
    frames = emitted[..., 1::2].transpose(1, 2).masked_fill(~own, -torch.inf).argmax(-1)
    valid = torch.arange(count, device=labels.device) < label_lengths[:, None]
    return frames, valid & possible[:, None]


def _best_path(
    emitted: Tensor, skips: Tensor, lengths: Tensor, label_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """States `(B, T)` of the best path, -1 beyond `lengths`, and whether there is a path `(B,)`."""
    batch, frames, states = emitted.shape
    score = torch.full((batch, states), _NEVER, device=emitted.device)
    score[:, :2] = emitted[:, 0, :2]
    moves = []
    for frame in range(1, frames):
        skipped = F.pad(score, (2, 0), value=_NEVER)[:, :-2].masked_fill(~skips, _NEVER)
        stepped = F.pad(score, (1, 0), value=_NEVER)[:, :-1]
        best, move = torch.stack((score, stepped, skipped)).max(0)
        alive = (frame < lengths)[:, None]
        score = torch.where(alive, best + emitted[:, frame], score)
        moves.append(move.masked_fill_(~alive, 0))
    ends = torch.stack((2 * label_lengths, (2 * label_lengths - 1).clamp(min=0)), dim=1)
    final, choice = score.gather(1, ends).max(1)
    state = ends.gather(1, choice[:, None])
    path = [state]
    for move in reversed(moves):
        state = state - move.gather(1, state)
        path.append(state)
    whole = torch.cat(path[::-1], dim=1)
    inside = torch.arange(frames, device=emitted.device) < lengths[:, None]
    return whole.masked_fill(~inside, -1), final > _NEVER / 2
