"""Which frames the tokens of a Whisper student were said in: by its CTC head, or by its attention to the frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.nn.ctc import label_frames
from retort.students.student import Encoded
from retort.students.whisper import WhisperStudent
from retort.text.tokenizers import EOS, PAD

Spans = tuple[list[float], list[float]]
"""First frame of each token, and the frame after its last."""
MEDIAN_FRAMES = 7
"""Width of the median filter over attention weights, as in openai-whisper."""


@torch.inference_mode()
def frames_of_tokens(student: WhisperStudent, encoded: Encoded, texts: Sequence[Sequence[int]]) -> list[Spans]:
    """The frames of every token of B texts, starts and ends never descending.

    Args:
        texts: ids of each utterance, without EOS; may be empty.
    """
    if not any(texts):
        return [([], []) for _ in texts]
    if student.byte_ctc is not None:
        return _by_ctc(student, encoded, texts)
    return _by_attention(student, encoded, texts)


def _by_ctc(student: WhisperStudent, encoded: Encoded, texts: Sequence[Sequence[int]]) -> list[Spans]:
    """From the best path of CTC through the bytes of a text."""
    labels, counts = student.byte_labels(texts, encoded.lengths.device)
    frames, valid = label_frames(student.byte_log_probs(encoded), encoded.lengths, labels, counts)
    spans = []
    for ids, places, known, length in zip(texts, frames.tolist(), valid.tolist(), encoded.lengths.tolist()):
        spellings = [student.spellings[each] for each in ids]
        ends = list(accumulate(len(each) for each in spellings))
        if not all(known[: ends[-1]] if ends else []):
            spans.append(_evenly(len(ids), length))
            continue
        first: list[float] = []
        last: list[float] = []
        for spelling, end in zip(spellings, ends):
            start = end - len(spelling.lstrip(b" ") or spelling)
            first.append(float(places[start]))
            last.append(places[end - 1] + 1.0)
        spans.append((first, last))
    return spans


def _evenly(count: int, length: int) -> Spans:
    return [place * length / count for place in range(count)], [(place + 1) * length / count for place in range(count)]


def _by_attention(student: WhisperStudent, encoded: Encoded, texts: Sequence[Sequence[int]]) -> list[Spans]:
    """From the attention weights of the alignment heads: the best division of the frames among the tokens.

    Weights are normalised over the tokens, smoothed over the frames and averaged over the heads, as in openai-whisper.
    """
    most = max(map(len, texts)) + 1
    previous = torch.full((len(texts), most), PAD, device=encoded.lengths.device)
    previous[:, 0] = EOS
    for row, ids in enumerate(texts):
        previous[row, 1 : len(ids) + 1] = torch.tensor(list(ids), dtype=torch.int64)
    weights = student.decoder.alignment(previous, encoded.hidden, encoded.lengths)
    spans = []
    for each, ids, length in zip(weights, texts, encoded.lengths.tolist()):
        if not ids or length == 0:
            spans.append(([0.0] * len(ids), [0.0] * len(ids)))
            continue
        scores = _scores(each[:, : len(ids) + 1, :length])
        ends = divide_frames(scores)
        spans.append(([0.0, *map(float, ends[:-2])], [float(end) for end in ends[:-1]]))
    return spans


def _scores(weights: Tensor) -> NDArray[np.float64]:
    """`(N, T)` from attention weights `(heads, N, T)`."""
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    normal = (weights - mean) / deviation.clamp(min=1e-10)
    half = MEDIAN_FRAMES // 2
    if normal.shape[-1] > half:
        normal = torch.nn.functional.pad(normal, (half, half), mode="reflect")
        normal = normal.unfold(-1, MEDIAN_FRAMES, 1).median(-1).values
    found: NDArray[np.float64] = normal.mean(0).double().cpu().numpy()
    return found


def divide_frames(scores: NDArray[np.float64]) -> list[int]:
    """The frame after the last of each of N tokens, for the division of T frames into N consecutive runs with the
    greatest sum of `scores (N, T)`; a run may be empty, and the last one ends with the frames."""
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
