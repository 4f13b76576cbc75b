"""Token times from the attention weights of Whisper's decoder, as in openai-whisper."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEDIAN_FRAMES = 7
"""Width of the median filter over attention weights, as in openai-whisper."""


def token_runs(weights: Tensor, counts: Tensor, lengths: Tensor) -> list[list[int]]:
    """The frame after the last one of each token, from the best division of the frames among the tokens.

    Weights are normalised over the tokens, smoothed over the frames and averaged over the heads, as in openai-whisper.

    Args:
        weights: `(B, heads, N, T)`, attention of the decoder's alignment heads.
        counts: `(B,)`, tokens of each utterance, including EOS.
        lengths: `(B,)`, frames of each utterance.
    """
    return [
        divide_frames(_scores(each[:, :count, :length])) if count and length else [0] * count
        for each, count, length in zip(weights, counts.tolist(), lengths.tolist())
    ]


def middle_frames(runs: list[list[int]], lengths: Tensor) -> Tensor:
    """The middle frame `(B, N)` int64 of each of :func:`token_runs`, on the device of `lengths (B,)`; 0 beyond the
    tokens."""
    most = max(map(len, runs), default=0)
    middles = torch.zeros(len(runs), most, dtype=torch.int64)
    for row, ends in enumerate(runs):
        starts = [0, *ends[:-1]]
        middles[row, : len(ends)] = torch.tensor([(start + end) // 2 for start, end in zip(starts, ends)])
    return middles.to(lengths.device).minimum((lengths - 1).clamp(min=0)[:, None])


def _scores(weights: Tensor) -> NDArray[np.float64]:
    """Scores `(N, T)` from attention weights `(heads, N, T)`."""
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    normal = (weights - mean) / deviation.clamp(min=1e-10)
    half = MEDIAN_FRAMES // 2
    if normal.shape[-1] > half:
        normal = torch.nn.functional.pad(normal, (half, half), mode="reflect")
        normal = normal.unfold(-1, MEDIAN_FRAMES, 1).median(-1).values
    found: NDArray[np.float64] = normal.mean(0).double().cpu().numpy()
    return found


def divide_frames(scores: NDArray[np.float64]) -> list[int]:
    """The frame after the last one of each of N tokens, for the division of T frames into N consecutive runs with
    the greatest sum of `scores (N, T)`. A run may be empty, and the last one ends at T."""
    count, frames = scores.shape
    sums = np.concatenate((np.zeros((count, 1)), np.cumsum(scores, axis=1)), axis=1)
    best = sums[0]
    starts = np.zeros((count, frames + 1), np.int64)
    for token in range(1, count):
        gained = best - sums[token]
        reached = np.maximum.accumulate(gained)
        fresh = np.concatenate(([True], gained[1:] > reached[:-1]))
        starts[token] = np.maximum.accumulate(np.where(fresh, np.arange(frames + 1), 0))
        best = sums[token] + reached
    ends, end = [frames], frames
    for token in range(count - 1, 0, -1):
        end = int(starts[token, end])
        ends.append(end)
    return ends[::-1]
