"""Audio files of any rate and channel count, read in blocks as one channel at the requested rate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from retort.audio.channels import choose_channels
from retort.audio.decoding import AudioInfo, open_source
from retort.audio.resampling import Resampler, resample
from retort.common.errors import BadUtterance

__all__ = [
    "AudioInfo",
    "AudioReader",
    "WaveCheck",
    "audio_info",
    "check_wave",
    "open_audio",
    "read_audio",
    "resample",
]

Channel: TypeAlias = int | Literal["mix"]
"""A channel, counted from 0, or the mean of all channels (see :func:`retort.audio.channels.choose_channels`)."""

SILENCE = 1e-4
"""A wave with a smaller amplitude (full scale is 1) is considered silent: about three steps of 16 bit."""
LARGEST = 2.0**32
"""Samples beyond it come from a broken write; files of 32-bit integers stored as floats are below."""
LOUD = 64.0
"""Full scale is 1: a peak beyond it is a wave of integers stored as floats, or a broken sample."""
SPIKE_SECONDS = 0.005
"""A peak beyond `LOUD` with less than this at a thousandth of its level or more is a broken sample."""
MAXIMUM_HOURS = 24.0
"""Default limit of the length of a recording."""

_GROWTH = 1 << 24

log = logging.getLogger(__name__)


def audio_info(path: str | Path, content: bytes | None = None) -> AudioInfo:
    """Rate, length and channels of a file; the length is counted if its header is not reliable.

    Args:
        content: the bytes of the file, if it is not on disk; `path` is then its name in errors.

    Raises:
        BadUtterance: the file does not exist, is not readable audio, has no samples, or a sampling rate out of bounds.
    """
    return open_source(path, content).info


def open_audio(
    path: str | Path,
    sampling_rate: int | None = 16000,
    channel: Channel = "mix",
    *,
    first: int = 0,
    last: int | None = None,
    maximum_hours: float = MAXIMUM_HOURS,
    content: bytes | None = None,
) -> AudioReader:
    """Open a file to read it in blocks.

    Args:
        sampling_rate: sampling rate of the blocks in Hz; None for that of the file.
        channel: a channel of the file, counted from 0, or "mix".
        first: first sample (at the rate of the file).
        last: sample before which the blocks end; None for the end of the file.
        maximum_hours: limit of the length.
        content: the bytes of the file, if it is not on disk; `path` is then its name in errors.

    Raises:
        BadUtterance: the file does not exist, is not readable audio, has no samples or a sampling rate out of bounds,
            exceeds `maximum_hours`, or lacks the channel.
    """
    return AudioReader(path, sampling_rate, channel, first, last, maximum_hours, content)


class AudioReader:
    """A file, or a range of it, as blocks of one channel; made by :func:`open_audio`.

    Attributes:
        path: the file.
        info: rate, length and channels of the file.
        sampling_rate: of the blocks, Hz.
        channels: of the file.
    """

    def __init__(
        self,
        path: str | Path,
        sampling_rate: int | None,
        channel: Channel,
        first: int,
        last: int | None,
        maximum_hours: float,
        content: bytes | None = None,
    ) -> None:
        self.path = path
        self._source = open_source(path, content)
        self.info = self._source.info
        self.channels = self.info.channels
        self.sampling_rate = sampling_rate or self.info.sampling_rate
        self._channel, self._first, self._last = channel, first, last
        self._hours = maximum_hours
        if channel != "mix" and not 0 <= channel < self.channels:
            has = "1 channel" if self.channels == 1 else f"{self.channels} channels"
            raise BadUtterance(
                f"it has {has}, there is no channel {channel} (they are counted from 0)",
                where=path,
                remedy="Choose another channel",
            )
        self._check_length(self.info.samples if last is None else min(last, self.info.samples) - first)

    @property
    def warning(self) -> str:
        """Description of missing data without a full stop ("ends early, ..."), or an empty text.

        For some formats it is known only after the end of :meth:`blocks`.
        """
        return self._source.warning

    @property
    def samples(self) -> int:
        """Total length of all blocks according to the file's header."""
        length = min(self._last or self.info.samples, self.info.samples) - self._first
        return max(0, -(-length * self.sampling_rate // self.info.sampling_rate))

    def blocks(self) -> Iterator[np.ndarray]:
        """`(n,)` float32 with n > 0, full scale 1, in order; memory does not grow with the length of the file.

        Their concatenation is :func:`resample` of the whole range. Can be called again.

        Raises:
            BadUtterance: the file is damaged, or longer than allowed.
        """
        resampler = Resampler(self.info.sampling_rate, self.sampling_rate)
        seen = 0
        for block in self._single():
            seen += len(block)
            self._check_length(seen)
            if len(made := resampler(block)):
                yield made
        if len(rest := resampler.finish()):
            yield rest

    def read(self) -> np.ndarray:
        """All blocks as one, `(N,)` float32."""
        samples = np.empty(
            min(self.samples, _GROWTH), np.float32
        )  # the header may state far more samples than there are
        size = 0
        for block in self.blocks():
            if size + len(block) > len(samples):
                samples.resize(size + max(len(block), _GROWTH), refcheck=False)
            samples[size : size + len(block)] = block
            size += len(block)
        samples.resize(size, refcheck=False)
        return samples

    def _single(self) -> Iterator[np.ndarray]:
        """One channel at the rate of the file."""
        blocks = self._source.blocks
        if self._channel != "mix":
            chosen = [self._channel]
        elif self.channels == 1:
            chosen = [0]
        else:
            chosen = choose_channels(blocks(self._first, self._last), self.channels)
        for block in blocks(self._first, self._last):
            if len(chosen) == self.channels:
                yield block.mean(axis=1)
            else:
                yield block[:, chosen].mean(axis=1)

    def _check_length(self, samples: int) -> None:
        check_length(samples, self.info.sampling_rate, self._hours, self.path)


def check_length(samples: int, sampling_rate: int, maximum_hours: float, path: str | Path) -> None:
    """Refuse a recording that is too long.

    Raises:
        BadUtterance: it has more than `maximum_hours`.
    """
    if samples > maximum_hours * 3600 * sampling_rate:
        raise BadUtterance(
            f"{samples / sampling_rate / 3600:.3g} hours long, the limit is {maximum_hours:.3g}",
            where=path,
            remedy="Raise the limit (--max-hours), or cut the file into shorter ones",
        )


def read_audio(
    path: str | Path,
    sampling_rate: int = 16000,
    channel: Channel = "mix",
    *,
    maximum_hours: float = MAXIMUM_HOURS,
) -> np.ndarray:
    """Read a file as one channel at `sampling_rate` (Hz); arguments as of :func:`open_audio`.

    A truncated file is read to its end, and a warning is logged.

    Returns:
        `(N,)` float32, full scale is 1. Its content is not checked, see :func:`check_wave`.

    Raises:
        BadUtterance: as :func:`open_audio`, or the file is damaged.
    """
    reader = open_audio(path, sampling_rate, channel, maximum_hours=maximum_hours)
    samples = reader.read()
    log_warning(reader)
    if not samples.size:
        raise BadUtterance("no samples in it", where=path, remedy="Replace the file or remove it")
    return samples


def log_warning(reader: AudioReader) -> None:
    """Log missing data of a file that was read to its end."""
    if reader.warning:
        log.warning("%s: %s", reader.path, reader.warning)


def check_wave(samples: np.ndarray, where: str | Path, sampling_rate: int = 16000) -> None:
    """Raise an error for a wave `(N,)` that cannot contain speech; see :class:`WaveCheck`.

    Raises:
        BadUtterance: as :meth:`WaveCheck.finish`.
    """
    check = WaveCheck(sampling_rate)
    step = 1 << 20
    for start in range(0, len(samples), step):
        check.add(samples[start : start + step])
    check.finish(where)


class WaveCheck:
    """Detects waves that cannot contain speech, block by block."""

    def __init__(self, sampling_rate: int = 16000) -> None:
        self.sampling_rate = sampling_rate
        self.samples = 0
        self.bad = 0
        self._low, self._high = np.inf, -np.inf
        self._levels = np.zeros(256, np.int64)  # number of samples by binary exponent

    def add(self, block: np.ndarray) -> None:
        """Add samples `(n,)` float32."""
        if not len(block):
            return
        self.samples += len(block)
        finite = np.isfinite(block)
        if not finite.all():
            self.bad += int(len(block) - finite.sum())
            block = block[finite]
            if not len(block):
                return
        self._low, self._high = min(self._low, float(block.min())), max(self._high, float(block.max()))
        exponents = np.clip(np.frexp(block)[1], -127, 128) + 127
        self._levels += np.bincount(exponents, minlength=256)

    @property
    def _peak(self) -> float:
        return max(-self._low, self._high)

    @property
    def damaged(self) -> bool:
        """Whether there are values that are not finite, or beyond `LARGEST`, so that features cannot be computed."""
        return self.bad > 0 or self._peak > LARGEST

    @property
    def silent(self) -> bool:
        """Whether there are samples, all of them finite, and nothing but silence in them."""
        return self.samples > 0 and not self.bad and (self._high - self._low) / 2 < SILENCE

    def finish(self, where: str | Path) -> None:
        """Check the added samples.

        Raises:
            BadUtterance: the wave is empty or has NaN or infinite values, values beyond `LARGEST`, single samples far
                beyond all others, or is silent (see `SILENCE`; a constant offset is silence).
        """
        again = "Write the file again or remove it"
        if not self.samples:
            raise BadUtterance("no samples in it", where=where, remedy="Replace the file or remove it")
        if self.bad:
            raise BadUtterance(
                f"{self.bad} of {self.samples} samples are NaN or infinite", where=where, remedy=again
            )
        peak = self._peak
        # 10 binary places below the peak: a thousandth of it.
        near = int(self._levels[max(0, int(np.frexp(peak)[1]) + 127 - 10) :].sum())
        if peak > LARGEST or (peak > LOUD and near < SPIKE_SECONDS * self.sampling_rate):
            raise BadUtterance(
                f"samples as large as {peak:.3g}, where full scale is 1: the file is damaged",
                where=where,
                remedy=again,
            )
        if (self._high - self._low) / 2 < SILENCE:
            raise BadUtterance("nothing but silence", where=where, remedy="Record it again or remove it")
