"""Features of audio that arrives in pieces: the same frames as those of the whole recording.

Frames are computed in float64 as soon as their window is complete. Normalisation depends on earlier frames only
(`features.statistics: running`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from retort.audio.fbank import FRAME_SHIFT, Fbank, FbankConfig
from retort.audio.whisper import WINDOW, WhisperFeatureConfig, WhisperFeatures, slaney_filters
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig

Values = NDArray[np.float64]

LOUDEST = 0.0
"""Least value of Whisper's running maximum, a log10 power: nine of ten utterances of read speech exceed it. Silence
before the first word is then limited to about the same value as in whole utterances, which Whisper was trained with."""
PRIOR_FRAMES, PRIOR_MEAN, PRIOR_DEVIATION = 100.0, 14.0, 3.5
"""Running CMVN starts as if this many frames of this mean and standard deviation had been seen; the values are those of
filter banks of clean read speech."""


class OnlineFeatures(ABC):
    """Features of one stream of samples.

    Args:
        config: kind, number of bins and normalisation.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self.shift = round(FRAME_SHIFT * config.sampling_rate)
        self.window, self.early = self.sizes()
        self._buffer = np.zeros(0)
        self._samples = self._frames = 0
        self._started = False

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Samples of a window, and how many of them are before the first sample of the frame's 10 ms."""

    @abstractmethod
    def started(self, samples: Values) -> Values:
        """The samples `(early,)` before the first of `samples`, of which there are at least `window`."""

    @abstractmethod
    def ended(self, samples: Values, missing: int) -> Values:
        """The `missing` samples after the last of `samples`."""

    @abstractmethod
    def extract(self, windows: Values) -> Values:
        """`(T, window)` samples to `(T, bins)`."""

    @abstractmethod
    def normalise(self, frames: Values) -> Values:
        """Normalise `(T, bins)` by the statistics of all frames so far; T is at least 1."""

    @property
    def look_ahead(self) -> int:
        """Samples after its own 10 ms that a frame depends on."""
        return self.window - self.early - self.shift

    def accept(self, samples: NDArray[np.floating]) -> Values:
        """The frames `(T, bins)` that are complete after `samples (N,)` in [-1, 1]; T and N may be 0."""
        self._buffer = np.concatenate((self._buffer, np.asarray(samples, np.float64)))
        self._samples += len(samples)
        if not self._started:
            if self._samples < self.window:
                return np.zeros((0, self.config.bins))
            self._start()
        return self._complete((len(self._buffer) - self.window) // self.shift + 1)

    def finish(self) -> Values:
        """The last frames `(T, bins)` of the stream."""
        total = (self._samples + self.shift // 2) // self.shift
        if not self._started:
            if not self.short_enough(self._samples):
                return np.zeros((0, self.config.bins))
            self._buffer = np.pad(self._buffer, (0, self.window))
            self._start()
        count = total - self._frames
        missing = max((count - 1) * self.shift + self.window - len(self._buffer), 0)
        if missing:
            self._buffer = np.concatenate((self._buffer, self.ended(self._buffer, missing)))
        return self._complete(count)

    def short_enough(self, samples: int) -> bool:
        """Whether a stream of fewer samples than a window has frames."""
        return False

    def _start(self) -> None:
        self._buffer = np.concatenate((self.started(self._buffer), self._buffer))
        self._started = True

    def _complete(self, count: int) -> Values:
        if count <= 0:
            return np.zeros((0, self.config.bins))
        windows = np.lib.stride_tricks.sliding_window_view(self._buffer, self.window)[
            : count * self.shift : self.shift
        ]
        frames = self.normalise(self.extract(windows[:count]))
        self._buffer = self._buffer[count * self.shift :].copy()
        self._frames += count
        return frames


class OnlineWhisper(OnlineFeatures):
    """Whisper's log-mel features with a running maximum.

    Whisper limits the logarithms to 8 below the maximum of the utterance. Here it is the maximum of the frames so far,
    at least `LOUDEST`.
    """

    def sizes(self) -> tuple[int, int]:
        self._filters = slaney_filters(self.config.bins, WINDOW, self.config.sampling_rate).astype(np.float64)
        self._hann = np.hanning(WINDOW + 1)[:-1]
        self._maximum = LOUDEST
        return WINDOW, WINDOW // 2

    def started(self, samples: Values) -> Values:
        return samples[1 : self.early + 1][::-1]

    def ended(self, samples: Values, missing: int) -> Values:
        return np.zeros(missing)

    def short_enough(self, samples: int) -> bool:
        return samples >= self.shift // 2

    def extract(self, windows: Values) -> Values:
        power = np.abs(np.fft.rfft(windows * self._hann, axis=-1)) ** 2
        # One product per frame: the order of summation does not depend on the number of frames.
        return np.log10(np.maximum((power[:, None] @ self._filters)[:, 0], 1e-10))

    def normalise(self, frames: Values) -> Values:
        loudest = np.maximum.accumulate(np.maximum(frames.max(1), self._maximum))
        self._maximum = float(loudest[-1])
        return (np.maximum(frames, loudest[:, None] - 8.0) + 4.0) / 4.0


class RunningCmvn:
    """Mean and variance normalisation of every bin by the frames so far, the current one included."""

    def __init__(self) -> None:
        self._count = PRIOR_FRAMES
        self._sums = np.array([[PRIOR_MEAN], [PRIOR_MEAN**2 + PRIOR_DEVIATION**2]]) * PRIOR_FRAMES

    def __call__(self, frames: Values) -> Values:
        """`(T, bins)` float64, T at least 1."""
        counts = self._count + np.arange(1, len(frames) + 1)[:, None]
        sums, squares = (
            np.cumsum(np.concatenate((np.broadcast_to(before, (1, frames.shape[1])), values)), 0)[1:]
            for before, values in zip(self._sums, (frames, frames**2))
        )
        self._count, self._sums = float(counts[-1, 0]), np.stack((sums[-1], squares[-1]))
        mean = sums / counts
        deviation = np.sqrt(np.maximum(squares / counts - mean**2, 0.0))
        return (frames - mean) / np.maximum(deviation, 1e-5)


class OnlineFbank(OnlineFeatures):
    """Kaldi's log-mel filter banks, with running CMVN if `features.cmvn` is set."""

    def sizes(self) -> tuple[int, int]:
        assert isinstance(self.config, FbankConfig)
        self._fbank = Fbank(self.config)
        self._cmvn = RunningCmvn() if self.config.cmvn else None
        return self._fbank.size, (self._fbank.size - self._fbank.shift) // 2

    def started(self, samples: Values) -> Values:
        return samples[: self.early][::-1]

    def ended(self, samples: Values, missing: int) -> Values:
        return samples[-missing:][::-1]

    def extract(self, windows: Values) -> Values:
        return self._fbank.each_energies(windows * 32768.0)

    def normalise(self, frames: Values) -> Values:
        return frames if self._cmvn is None else self._cmvn(frames)


KINDS: dict[str, type[OnlineFeatures]] = {"fbank": OnlineFbank, "whisper": OnlineWhisper}
"""Classes by `features.kind`."""


def online_features(config: FeatureConfig) -> OnlineFeatures:
    """The features of one stream.

    Raises:
        UserError: the features are normalised over the utterance.
    """
    if not config.streams:
        raise UserError(
            f"features.kind is {config.kind}, features.statistics is {config.statistics}: such features are normalised "
            "over the whole utterance",
            remedy="Train a model with fbank or whisper features and features.statistics: running",
        )
    return KINDS[config.kind](config)


def make_whisper_features(config: WhisperFeatureConfig) -> WhisperFeatures | RunningWhisper:
    """Whisper's features of whole utterances."""
    return RunningWhisper(config) if config.statistics == "running" else WhisperFeatures(config)


class RunningWhisper:
    """Whisper's features of whole utterances, with the running maximum of :class:`OnlineWhisper`."""

    def __init__(self, config: WhisperFeatureConfig) -> None:
        self.config = config

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` float32, T = round(N / 10 ms)."""
        online = OnlineWhisper(self.config)
        return np.concatenate((online.accept(samples), online.finish())).astype(np.float32)
