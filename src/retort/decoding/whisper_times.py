"""Frames of the tokens of a Whisper student, from its CTC head or from its attention to the frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from retort.nn.ctc import label_frames
from retort.nn.whisper_alignment import token_runs
from retort.students.student import Encoded
from retort.students.whisper import WhisperStudent
from retort.text.tokenizers import EOS, PAD

Spans = tuple[list[float], list[float]]
"""First frame of each token, and the frame after its last one."""


@torch.inference_mode()
def frames_of_tokens(student: WhisperStudent, encoded: Encoded, texts: Sequence[Sequence[int]]) -> list[Spans]:
    """Start and end frames of every token of B texts, both non-decreasing.

    Args:
        texts: ids of each utterance, without EOS; may be empty.
    """
    if not any(texts):
        return [([], []) for _ in texts]
    if student.byte_ctc is not None:
        return _by_ctc(student, encoded, texts)
    return _by_attention(student, encoded, texts)


def _by_ctc(student: WhisperStudent, encoded: Encoded, texts: Sequence[Sequence[int]]) -> list[Spans]:
    """From the best CTC path through the bytes of the text."""
    labels, counts = student.byte_labels(texts, encoded.lengths.device)
    frames, valid = label_frames(student.byte_log_probs(encoded), encoded.lengths, labels, counts)
    spans = []
    for ids, places, has_path, length in zip(texts, frames.tolist(), valid.tolist(), encoded.lengths.tolist()):
        spellings = [student.spellings[each] for each in ids]
        ends = list(accumulate(len(each) for each in spellings))
        if not all(has_path[: ends[-1]] if ends else []):
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
    """From the attention weights of the alignment heads, by the best division of the frames among the tokens."""
    most = max(map(len, texts)) + 1
    previous = torch.full((len(texts), most), PAD, device=encoded.lengths.device)
    previous[:, 0] = EOS
    for row, ids in enumerate(texts):
        previous[row, 1 : len(ids) + 1] = torch.tensor(list(ids), dtype=torch.int64)
    weights = student.decoder.alignment(previous, encoded.hidden, encoded.lengths)
    counts = torch.tensor([len(ids) + 1 for ids in texts])
    spans = []
    for ends in token_runs(weights, counts, encoded.lengths):
        text_ends = [float(end) for end in ends[:-1]]
        spans.append(([0.0, *text_ends[:-1]][: len(text_ends)], text_ends))
    return spans
