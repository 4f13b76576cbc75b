"""Samples and features of one utterance of a stream, given out as the windows of chunks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.audio.online import online_features
from retort.config.schema import FeatureConfig


class FrontendSizes(NamedTuple):
    """What a front end needs of the features.

    Attributes:
        subsampling: feature frames per frame of the front end.
        before, after: feature frames before and after its own ones that a frame depends on.
        padded: whether an incomplete last frame counts: T features then give ceil(T / subsampling) frames, otherwise
            floor((T - after) / subsampling).
    """

    subsampling: int
    before: int
    after: int
    padded: bool

    @property
    def lead(self) -> int:
        """Frames of the front end that the features `before` a chunk belong to."""
        return -(-self.before // self.subsampling)

    def frames(self, features: int) -> int:
        """Number of frames of an utterance of so many features."""
        if self.padded:
            return -(-features // self.subsampling)
        return max((features - self.after) // self.subsampling, 0)


class Window(NamedTuple):
    """The features of a chunk.

    Attributes:
        features: `(T, bins)` float64: those of `lead` frames before the chunk, of the chunk, and those after it that it
            depends on.
        lead: number of frames of the front end before the chunk; fewer at the start of the utterance.
        first: frames of the front end before the window.
        frames: frames of the front end in the chunk.
    """

    features: NDArray[np.float64]
    lead: int
    first: int
    frames: int


class FeatureBuffer:
    """Samples and features of one utterance of a stream.

    Args:
        features: kind of features.
        frontend: sizes of the front end.
        size: frames of the front end in a chunk.

    Attributes:
        seconds: duration of the audio that the chunks so far depend on, look-ahead included.

    Raises:
        UserError: the features need the whole utterance.
    """

    def __init__(self, features: FeatureConfig, frontend: FrontendSizes, size: int) -> None:
        self.sizes, self.size, self.seconds = frontend, size, 0.0
        self._audio = online_features(features)
        self._features: NDArray[Any] = np.zeros((0, features.bins))
        self._first = 0  # of the features that are kept
        self._done = 0  # frames of the front end so far
        self._samples = 0
        self._waiting: list[NDArray[np.floating]] = []  # samples of which no features were computed yet
        self._ended = False

    @property
    def feature_frames(self) -> int:
        """Feature frames, of 10 ms, of the chunks so far."""
        return self._done * self.sizes.subsampling

    def accept(self, samples: NDArray[np.floating]) -> None:
        """Add samples `(N,)`."""
        self._samples += len(samples)
        self._waiting.append(samples)

    def _extract(self) -> None:
        """Compute the features of the samples so far: of those of a chunk at once, which is cheaper than of every piece."""
        if self._waiting:
            samples, self._waiting = np.concatenate(self._waiting), []
            self._add(self._audio.accept(samples))

    def _add(self, frames: NDArray[Any]) -> None:
        self._features = np.concatenate((self._features, frames))

    def end(self) -> None:
        """There are no more samples: the rest is the last chunk."""
        if not self._ended:
            self._extract()
            self._add(self._audio.finish())
            self._ended = True

    def kept(self) -> int:
        """Number of values that are kept."""
        return self._features.size + sum(len(each) for each in self._waiting)

    def waiting(self) -> int:
        """Number of frames of the front end in the next chunk if it is complete, otherwise 0."""
        needed = (self._done + self.size) * self.sizes.subsampling + self.sizes.after
        if not self._ended:
            if self._samples < needed * self._audio.shift + self._audio.look_ahead:
                return 0
            self._extract()
        have = self._first + len(self._features)
        if self._ended:
            return min(self.sizes.frames(have) - self._done, self.size)
        return self.size if have >= needed else 0

    def next_window(self) -> Window:
        """The features of the next chunk, which must be complete."""
        count, own, sizes = self.waiting(), self.sizes.subsampling, self.sizes
        lead = min(sizes.lead, self._done)
        first = self._done - lead
        begin = first * own - self._first
        window = self._features[begin : begin + (lead + count) * own + sizes.after]
        self._done += count
        keep = max((self._done - sizes.lead) * own, 0)
        self._features = self._features[keep - self._first :].copy()
        self._first = keep
        needed = (self._done * own + sizes.after) * self._audio.shift + self._audio.look_ahead
        self.seconds = min(needed, self._samples) / self._audio.config.sampling_rate
        return Window(window, lead, first, count)
