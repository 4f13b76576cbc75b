"""Limits of the context of frames, for encoders that are used while audio arrives.

A chunk is a fixed number of consecutive frames. A frame depends on its own chunk and on earlier frames, never on later
chunks: self-attention has a block mask (Chen et al. 2021, arXiv 2010.11395; Zhang et al. 2020, arXiv 2012.05481), and
centred convolutions get zeros in place of frames after the chunk (dynamic chunk convolution, Li et al. 2023, arXiv
2304.09325). All weights are those of the unlimited encoder. The same modules compute whole utterances with masks, and
one chunk after another with a :class:`StreamCache`; both give the same values.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.masks import attention_mask, valid_mask


class StreamCache:
    """What the modules of an encoder keep of earlier chunks, for B streams.

    Attributes:
        chunks: `(B,)` int64, number of chunks so far.
        tensors: last frames of inputs, keys or values by module and name; the first axis is the stream.
    """

    def __init__(self, chunks: Tensor, tensors: dict[tuple[nn.Module, str], Tensor] | None = None) -> None:
        self.chunks = chunks
        self.tensors = tensors or {}

    def extend(self, module: nn.Module, name: str, values: Tensor, frames: int, dim: int) -> Tensor:
        """`values` with the `frames` frames before them along `dim`, zeros before the start; keeps the last ones."""
        size = list(values.shape)
        size[dim] = frames
        past = self.tensors.get((module, name))
        whole = torch.cat((values.new_zeros(size) if past is None else past, values), dim=dim)
        self.tensors[module, name] = whole.narrow(dim, whole.shape[dim] - frames, frames)
        return whole

    def split(self) -> list[StreamCache]:
        """One cache per stream."""
        return [
            StreamCache(
                self.chunks[row : row + 1], {key: each[row : row + 1] for key, each in self.tensors.items()}
            )
            for row in range(len(self.chunks))
        ]


def join_caches(caches: Sequence[StreamCache]) -> StreamCache:
    """The cache of several streams; a stream at its start has zeros."""
    keys = {key: each for cache in caches for key, each in cache.tensors.items()}
    tensors = {}
    for key, like in keys.items():
        missing = like.new_zeros(1, *like.shape[1:])
        rows = (
            cache.tensors.get(key, missing.expand(len(cache.chunks), *like.shape[1:])) for cache in caches
        )
        tensors[key] = torch.cat(list(rows))
    return StreamCache(torch.cat([cache.chunks for cache in caches]), tensors)


@dataclass(frozen=True)
class Chunks:
    """The limits of context at the frame rate of a layer.

    Attributes:
        size: number of frames of a chunk.
        left: number of frames before the chunk that its frames attend to; 0 for all, which a stream does not have.
        cache: None if all frames of an utterance are given at once; otherwise each call gets the next chunk, and only
            the last one of a stream may be shorter.
    """

    size: int
    left: int = 0
    cache: StreamCache | None = None

    def at_rate(self, factor: int) -> Chunks:
        """The limits at a frame rate `factor` times lower.

        Raises:
            ValueError: the chunk is not a whole number of frames.
        """
        if self.size % factor:
            raise ValueError(
                f"a chunk of {self.size} frames has no whole number of groups of {factor} frames"
            )
        return replace(self, size=self.size // factor, left=max(self.left // factor, 1) if self.left else 0)

    def mask(self, lengths: Tensor, frames: int) -> Tensor:
        """Keys that may be attended to: `(B, 1, T, T)` bool for utterances, `(B, 1, 1, left + T)` for a stream.

        Args:
            lengths: `(B,)` int64, valid frames.
            frames: T.
        """
        if self.cache is not None:
            seen = (self.cache.chunks * self.size).clamp(max=self.left)
            before = torch.arange(self.left, device=lengths.device) >= self.left - seen[:, None]
            return torch.cat((before, valid_mask(lengths, frames)), dim=1)[:, None, None]
        place = torch.arange(frames, device=lengths.device)
        start = place // self.size * self.size
        inside = place[None, :] < (start + self.size)[:, None]
        if self.left:
            inside &= place[None, :] >= (start - self.left)[:, None]
        # A padded frame attends at least to itself, so that no result is NaN.
        return (inside & attention_mask(lengths, frames)) | torch.eye(
            frames, dtype=torch.bool, device=lengths.device
        )

    def ends(self, places: Tensor, lengths: Tensor) -> Tensor:
        """End, exclusive, of the chunks of the frames `places (B, U)`, within the `lengths (B,)`."""
        return ((places // self.size + 1) * self.size).minimum(lengths[:, None])


def context_mask(lengths: Tensor, frames: int, chunks: Chunks | None) -> Tensor:
    """Keys that the frames of a batch may attend to, with or without limits of context."""
    return attention_mask(lengths, frames) if chunks is None else chunks.mask(lengths, frames)


def with_past(chunks: Chunks | None, module: nn.Module, name: str, values: Tensor) -> Tensor:
    """Keys or values `(B, heads, T, d)`, in a stream with those of the earlier frames that may be attended to."""
    if chunks is None or chunks.cache is None:
        return values
    return chunks.cache.extend(module, name, values, chunks.left, 2)


def chunk_windows(hidden: Tensor, half: int, chunks: Chunks, module: nn.Module) -> Tensor:
    """Inputs of a centred convolution over each chunk: the chunk, `half` frames before it, and `half` zeros.

    Args:
        hidden: `(B, T, D)`, zero beyond the lengths.
        half: half of the kernel.
        chunks: limits of context.
        module: the convolution, whose input is kept in a stream.

    Returns:
        `(B * n, D, half + size + half)` for n chunks.
    """
    if chunks.cache is not None:
        windows = chunks.cache.extend(module, "tail", hidden, half, 1).transpose(1, 2)
    else:
        padded = F.pad(hidden, (0, 0, half, -hidden.shape[1] % chunks.size))
        windows = padded.unfold(1, half + chunks.size, chunks.size).flatten(0, 1)
    return F.pad(windows, (0, half))


def join_chunks(windows: Tensor, like: Tensor) -> Tensor:
    """The outputs `(B * n, D, size)` for the windows of `like (B, T, ...)` as `(B, T, D)`."""
    joined = windows.unflatten(0, (like.shape[0], -1)).transpose(2, 3).flatten(1, 2)
    return joined[:, : like.shape[1]]


def draw_chunks(sizes: Sequence[int], lefts: Sequence[int], seed: int, step: int) -> Chunks | None:
    """The limits of context of an update, at random from (seed, step); None for the whole utterance.

    Args:
        sizes: chunk sizes in frames of the encoder's output; 0 for the whole utterance.
        lefts: numbers of frames before a chunk; 0 for all.
    """
    draw = random.Random(f"chunks {seed} {step}")
    size, left = draw.choice(list(sizes)), draw.choice(list(lefts))
    return Chunks(size, left) if size else None
