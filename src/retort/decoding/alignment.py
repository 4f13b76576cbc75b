"""When found tokens were said, as the CTC head hears them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor

from retort.decoding.beam import Candidate
from retort.decoding.greedy import Hypothesis
from retort.nn.ctc import label_frames
from retort.text.tokenizers import BLANK, PAD


def with_times(
    found: Sequence[Sequence[Candidate]], log_probs: Tensor, lengths: Tensor, *, heard: bool
) -> list[list[Candidate]]:
    """The candidates with times: each token takes the frame where the best path of CTC through all of them has it.

    Where an utterance has too few frames for a candidate's tokens, these share its frames evenly.

    Args:
        found: of B utterances.
        log_probs: `(B, T, V)` of the CTC head.
        lengths: `(B,)`.
        heard: whether the log-probabilities of the tokens are CTC's, too, at that frame, or the candidate's own.
    """
    columns = [
        _timed(rank, log_probs, lengths, heard)
        for rank in zip_longest(*found)  # one rank of all utterances at a time: a list may be long
    ]
    rows: list[list[Candidate]] = [[] for _ in found]
    for column in columns:
        for row, each in zip(rows, column):
            if each is not None:
                row.append(each)
    return rows


def _timed(
    candidates: Sequence[Candidate | None], log_probs: Tensor, lengths: Tensor, heard: bool
) -> list[Candidate | None]:
    spoken = [[] if each is None else each.hypothesis.ids for each in candidates]
    most = max(map(len, spoken))
    labels = torch.full((len(spoken), most), PAD, device=log_probs.device)
    for row, ids in enumerate(spoken):
        labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    counts = torch.tensor([len(ids) for ids in spoken], device=log_probs.device)
    frames, valid = label_frames(log_probs, lengths, labels, counts, blank=BLANK)
    utterances = torch.arange(len(spoken), device=log_probs.device)[:, None]
    sure = log_probs[utterances, frames, labels].tolist()
    timed: list[Candidate | None] = []
    for each, places, known, scores, length in zip(
        candidates, frames.tolist(), valid.tolist(), sure, lengths.tolist()
    ):
        if each is None:
            timed.append(None)
            continue
        ids, own = each.hypothesis.ids, each.hypothesis.log_probs
        size = len(ids)
        starts, ends = [float(place) for place in places[:size]], [place + 1.0 for place in places[:size]]
        if not all(known[:size]):
            starts = [place * length / size for place in range(size)]
            ends = [(place + 1) * length / size for place in range(size)]
        hypothesis = Hypothesis(ids, scores[:size] if heard else own, ends, starts)
        timed.append(replace(each, hypothesis=hypothesis))
    return timed
