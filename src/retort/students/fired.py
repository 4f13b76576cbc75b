"""Utterances as a decoder over fired embeddings gets them: encoder frames, fired embeddings, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from retort.nn.masks import padded
from retort.text.tokenizers import PAD


class Segment(NamedTuple):
    """Consecutive encoder frames with the embeddings that were fired in them.

    Attributes:
        frames: `(N, D)`.
        fired: `(M, D)`, one per token.
        places: `(M,)` int64, frame in which each token was fired, counted from the first of the segment; it may lie
            outside of the segment, if frames and fires were aligned in different ways.
    """

    frames: Tensor
    fired: Tensor
    places: Tensor


def concatenated(segments: Sequence[Segment]) -> Segment:
    """The segments one after the other."""
    places, start = [], 0
    for each in segments:
        places.append(each.places + start)
        start += len(each.frames)
    return Segment(
        torch.cat([each.frames for each in segments]), torch.cat([each.fired for each in segments]), torch.cat(places)
    )


def with_fires(segment: Segment, count: int) -> Segment:
    """The same frames with `count` fires: each is the mean of its share of the fires that are there, or a copy."""
    there = len(segment.fired)
    if there == count:
        return segment
    bounds = [(number * there // count, (number + 1) * there // count) for number in range(count)]
    bounds = [(first, max(last, first + 1)) for first, last in bounds]
    fired = torch.stack([segment.fired[first:last].mean(0) for first, last in bounds])
    return Segment(segment.frames, fired, segment.places[[last - 1 for _, last in bounds]])


@dataclass(frozen=True)
class FiredUtterances:
    """The input of a decoder over fired embeddings, of B utterances.

    Attributes:
        frames: `(B, T, D)`, encoder output, zero beyond `frame_lengths (B,)`.
        fired: `(B, U, D)`, embeddings before `student.cif.context_layers`, zero beyond `lengths (B,)`.
        places: `(B, U)` int64, frame in which each token was fired.
        tokens: `(B, U)` int64, EOS last, then pad.
    """

    frames: Tensor
    frame_lengths: Tensor
    fired: Tensor
    places: Tensor
    tokens: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on `device`."""
        return replace(self, **{each.name: getattr(self, each.name).to(device) for each in fields(self)})


@dataclass(frozen=True)
class SegmentedUtterances(FiredUtterances):
    """The same, with the frames of each token.

    Attributes:
        ends: `(B, U)` int64, the frame after the last one of each token; the first token starts at 0, and the last one
            ends at `frame_lengths`.
    """

    ends: Tensor

    def segments(self, row: int, bounds: Sequence[tuple[int, int]]) -> list[Segment]:
        """The frames and fires of tokens `[first, last)` of utterance `row`, for each of `bounds`; views."""
        ends = [0, *self.ends[row].tolist()]
        frames, fired, places = self.frames[row], self.fired[row], self.places[row]
        return [
            Segment(frames[ends[first] : ends[last]], fired[first:last], places[first:last] - ends[first])
            for first, last in bounds
        ]


def pad_utterances(
    utterances: Sequence[Segment], tokens: Sequence[Sequence[int]], frame_step: int = 1, token_step: int = 1
) -> FiredUtterances:
    """Whole utterances with one fire per token as a batch in float32; sizes are padded to multiples of the steps.

    Places outside of an utterance are moved to its first or last frame.
    """
    ids = [torch.tensor(each, dtype=torch.int64) for each in tokens]
    places = [each.places.clamp(0, max(len(each.frames) - 1, 0)) for each in utterances]
    return FiredUtterances(
        padded([each.frames.float() for each in utterances], frame_step),
        torch.tensor([len(each.frames) for each in utterances]),
        padded([each.fired.float() for each in utterances], token_step),
        padded(places, token_step),
        padded(ids, token_step, PAD),
        torch.tensor([len(each) for each in ids]),
    )
