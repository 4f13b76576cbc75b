"""The encoder of one stream: from samples to the frames of one chunk after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.audio.online import online_features
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.nn.chunks import Chunks, StreamCache, join_caches
from retort.nn.encoder import Encoder
from retort.nn.frontend import Conv2dFrontend, FramesFrontend
from retort.nn.whisper import WhisperFrontend


class EncoderStream:
    """Samples, features and the layers' state of one utterance of a stream.

    Args:
        encoder: encoder in eval mode.
        features: kind of features.
        chunks: limits of context in frames of the encoder's output.

    Attributes:
        cache: state of the layers.
        seconds: duration of the audio that the chunks so far depend on, look-ahead included.

    Raises:
        UserError: the encoder or the features need the whole utterance.
    """

    def __init__(self, encoder: Encoder, features: FeatureConfig, chunks: Chunks) -> None:
        if not isinstance(encoder.frontend, Conv2dFrontend | FramesFrontend | WhisperFrontend):
            raise UserError(
                "this encoder needs the whole utterance",
                remedy="Use a model that was trained with student.encoder.chunk",
            )
        self.encoder, self.frontend = encoder, encoder.frontend
        parameter = next(encoder.parameters())
        self.cache = StreamCache(torch.zeros(1, dtype=torch.int64, device=parameter.device))
        self.seconds = 0.0
        self.size = chunks.size * encoder.subsampling // self.frontend.subsampling
        """Frames of the front end in a chunk."""
        self._audio = online_features(features)
        self._features = torch.zeros(0, features.bins, dtype=parameter.dtype)
        self._first = 0  # of the features that are kept
        self._done = 0  # frames of the front end so far
        self._samples = 0
        self._ended = False

    @property
    def feature_frames(self) -> int:
        """Feature frames, of 10 ms, of the chunks so far."""
        return self._done * self.frontend.subsampling

    def accept(self, samples: NDArray[np.floating]) -> None:
        """Add samples `(N,)`."""
        self._samples += len(samples)
        self._add(self._audio.accept(samples))

    def _add(self, frames: np.ndarray) -> None:
        self._features = torch.cat((self._features, torch.from_numpy(frames).to(self._features.dtype)))

    def end(self) -> None:
        """There are no more samples: the rest is the last chunk."""
        if not self._ended:
            self._add(self._audio.finish())
            self._ended = True

    def kept(self) -> int:
        """Number of values that are kept."""
        return self._features.numel() + sum(each.numel() for each in self.cache.tensors.values())

    def waiting(self) -> int:
        """Number of frames of the front end in the next chunk if it is complete, otherwise 0."""
        have = self._first + len(self._features)
        if self._ended:
            total = int(self.frontend.output_lengths(torch.tensor([have])))
            return min(total - self._done, self.size)
        own = self.frontend.subsampling
        return self.size if have >= (self._done + self.size) * own + self.frontend.after else 0

    def take(self) -> Tensor:
        """The input `(T, dim)` of the first layer for the next chunk, which must be complete."""
        count, own = self.waiting(), self.frontend.subsampling
        lead = min(-(-self.frontend.before // own), self._done)
        begin = (self._done - lead) * own - self._first
        end = begin + (lead + count) * own + self.frontend.after
        window = self._features[begin:end][None].to(self.cache.chunks.device)
        made, lengths = self.frontend(
            window, torch.tensor([window.shape[1]], device=window.device), self._done - lead
        )
        entered, _ = self.encoder.entered(made, lengths)
        self._done += count
        keep = max((self._done - -(-self.frontend.before // own)) * own, 0)
        self._features = self._features[keep - self._first :].clone()
        self._first = keep
        needed = (self._done * own + self.frontend.after) * self._audio.shift + self._audio.look_ahead
        self.seconds = min(needed, self._samples) / self._audio.config.sampling_rate
        return entered[0, lead : lead + count]


def advance(streams: Sequence[EncoderStream], chunks: Chunks) -> tuple[Tensor, Tensor, StreamCache]:
    """Encode the next chunk of several streams together.

    Args:
        streams: streams of the same encoder whose next chunk is complete.

    Returns:
        Output `(B, T, dim)`, lengths `(B,)`, and the joined cache, to be given back by :func:`keep`.
    """
    entered = [stream.take() for stream in streams]
    lengths = torch.tensor([len(each) for each in entered], device=entered[0].device)
    cache = join_caches([stream.cache for stream in streams])
    hidden, after = streams[0].encoder.advance(
        pad_sequence(entered, batch_first=True), lengths, chunks, cache
    )
    return hidden, after, cache


def keep(streams: Sequence[EncoderStream], cache: StreamCache) -> None:
    """Store the joined cache in its streams."""
    for stream, own in zip(streams, cache.split()):
        stream.cache = own
