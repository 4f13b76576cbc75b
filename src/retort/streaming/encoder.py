"""The encoder of one stream: from samples to the frames of one chunk after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.nn.chunks import Chunks, StreamCache, join_caches
from retort.nn.encoder import Encoder
from retort.nn.frontend import Conv2dFrontend, FramesFrontend
from retort.nn.whisper import WhisperFrontend
from retort.streaming.feature_buffer import FeatureBuffer, FrontendSizes


def frontend_sizes(encoder: Encoder) -> FrontendSizes:
    """The sizes of an encoder's front end.

    Raises:
        UserError: the encoder needs the whole utterance.
    """
    frontend = encoder.frontend
    if not isinstance(frontend, Conv2dFrontend | FramesFrontend | WhisperFrontend):
        raise UserError(
            "this encoder needs the whole utterance",
            remedy="Use a model that was trained with student.encoder.chunk",
        )
    padded = not isinstance(frontend, Conv2dFrontend)
    return FrontendSizes(frontend.subsampling, frontend.before, frontend.after, padded)


class EncoderStream(FeatureBuffer):
    """Samples, features and the layers' state of one utterance of a stream.

    Args:
        encoder: encoder in eval mode.
        features: kind of features.
        chunks: limits of context in frames of the encoder's output.

    Attributes:
        cache: state of the layers.
        like: a parameter of the encoder, with its device and dtype.

    Raises:
        UserError: the encoder or the features need the whole utterance.
    """

    def __init__(self, encoder: Encoder, features: FeatureConfig, chunks: Chunks) -> None:
        sizes = frontend_sizes(encoder)
        super().__init__(features, sizes, chunks.size * encoder.subsampling // sizes.subsampling)
        self.encoder = encoder
        self.like = next(encoder.parameters())
        self.cache = StreamCache(torch.zeros(1, dtype=torch.int64, device=self.like.device))

    def kept(self) -> int:
        return super().kept() + sum(each.numel() for each in self.cache.tensors.values())


def entered(streams: Sequence[EncoderStream]) -> list[Tensor]:
    """The input `(T, dim)` of the first layer for the next chunk of each stream, which must be complete."""
    windows = [stream.next_window() for stream in streams]
    alike: dict[tuple[int, int], list[int]] = {}
    for row, window in enumerate(windows):
        # Only Whisper's front end has positions.
        place = window.first if isinstance(streams[row].encoder.frontend, WhisperFrontend) else 0
        alike.setdefault((len(window.features), place), []).append(row)
    found: dict[int, Tensor] = {}
    for (size, place), rows in alike.items():
        encoder, like = streams[rows[0]].encoder, streams[rows[0]].like
        features = torch.from_numpy(np.stack([windows[row].features for row in rows])).to(like)
        lengths = torch.full((len(rows),), size, device=features.device)
        made, _ = encoder.entered(*encoder.frontend(features, lengths, place))  # type: ignore[call-arg]
        for row, each in zip(rows, made):
            found[row] = each[windows[row].lead :][: windows[row].frames]
    return [found[row] for row in range(len(streams))]


def advance(streams: Sequence[EncoderStream], chunks: Chunks) -> tuple[Tensor, Tensor, StreamCache]:
    """Encode the next chunk of several streams together.

    Args:
        streams: streams of the same encoder whose next chunk is complete.

    Returns:
        Output `(B, T, dim)`, lengths `(B,)`, and the joined cache, to be given back by :func:`keep`.
    """
    frames = entered(streams)
    lengths = torch.tensor([len(each) for each in frames], device=frames[0].device)
    cache = join_caches([stream.cache for stream in streams])
    hidden, after = streams[0].encoder.advance(pad_sequence(frames, batch_first=True), lengths, chunks, cache)
    return hidden, after, cache


def keep(streams: Sequence[EncoderStream], cache: StreamCache) -> None:
    """Store the joined cache in its streams."""
    for stream, own in zip(streams, cache.split()):
        stream.cache = own
