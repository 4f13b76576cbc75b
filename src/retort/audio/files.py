"""Audio files of any rate and channel count, read as mono at the rate that is asked for."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from retort.errors import BadUtterance

SILENCE = 1e-4
"""A wave that swings less around its middle (full scale is 1) holds nothing: about three steps of 16 bit."""
LOWEST_RATE = 4000
"""Hz. Below it too little of speech is left, and a header that says so is most often broken."""
_BLOCK = 1 << 20


class AudioInfo(NamedTuple):
    sampling_rate: int
    """Hz."""
    samples: int
    """In one channel."""
    channels: int


def audio_info(path: str | Path) -> AudioInfo:
    """Rate, length and channels of a file from its header.

    Raises:
        BadUtterance: no such file, not audio that can be read, no samples, a rate below `LOWEST_RATE`.
    """
    with _opened(path) as file:
        info = AudioInfo(file.samplerate, file.frames, file.channels)
    if not info.samples:
        raise BadUtterance("no samples in it", where=path, remedy="Replace the file or leave it out")
    return info


def read_audio(path: str | Path, sampling_rate: int = 16000) -> np.ndarray:
    """Read a file as one channel, the mean of its channels, at `sampling_rate` (Hz).

    Returns:
        `(N,)` float32, full scale is 1. What it holds is not judged: see :func:`check_wave`.

    Raises:
        BadUtterance: no such file, not audio that can be read, no samples, a rate below `LOWEST_RATE`.
    """
    with _opened(path) as file:
        rate = int(file.samplerate)
        # Block by block, so that eight channels of an hour never stand in memory at once.
        blocks = [block.mean(axis=1) for block in _blocks(file)]
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not samples.size:
        raise BadUtterance("no samples in it", where=path, remedy="Replace the file or leave it out")
    return resample(samples, rate, sampling_rate)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """`(N,)` float32 at `rate` Hz to `(ceil(N * wanted / rate),)` at `wanted` Hz, by a polyphase filter."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, wanted)
    resampled = resample_poly(samples, wanted // divisor, rate // divisor)
    return np.asarray(resampled, dtype=np.float32)


def check_wave(samples: np.ndarray, where: str | Path) -> None:
    """Refuse a wave `(N,)` that cannot hold speech.

    Raises:
        BadUtterance: empty, NaN or infinite values, or silent (see `SILENCE`; a constant offset is silence).
    """
    if not samples.size:
        raise BadUtterance("no samples in it", where=where, remedy="Replace the file or leave it out")
    if not np.isfinite(samples).all():
        count = int(samples.size - np.isfinite(samples).sum())
        raise BadUtterance(
            f"{count} of {samples.size} samples are NaN or infinite",
            where=where,
            remedy="Write the file again or leave it out",
        )
    if float(np.ptp(samples)) / 2 < SILENCE:
        raise BadUtterance("nothing but silence", where=where, remedy="Record it again or leave it out")


@contextmanager
def _opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """The open file; whatever goes wrong until it is closed is told as one line."""
    path = Path(path)
    if path.is_dir():
        raise BadUtterance("a folder, not an audio file", where=path, remedy="Give the files in it")
    if not path.exists():
        raise BadUtterance("no such file", where=path, remedy="Check the path")
    if path.is_file() and not path.stat().st_size:
        raise BadUtterance(
            "the file is empty (0 bytes)", where=path, remedy="Replace the file or leave it out"
        )
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # a name may have bytes that are no characters
            if file.samplerate < LOWEST_RATE:
                raise BadUtterance(
                    f"its sampling rate is {file.samplerate} Hz, below {LOWEST_RATE} Hz",
                    where=path,
                    remedy="Check how it was written",
                )
            if (
                file.frames >= 1 << 48
            ):  # what libsndfile says of a streamed FLAC, and then cannot read to its end
                raise BadUtterance("does not state its length", where=path, remedy=_convert(path))
            yield file
    except PermissionError:
        raise BadUtterance("may not be read", where=path, remedy="Change its permissions") from None
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        # libsndfile: "Error opening '/long/path': Format not recognised."; TypeError: a headerless .raw file
        reason = str(error).rsplit(": ", 1)[-1].split("\n")[0].rstrip(".") or type(error).__name__
        raise BadUtterance(f"cannot be read as audio ({reason})", where=path, remedy=_convert(path)) from None


def _convert(path: Path) -> str:
    return "Convert it: " + shlex.join(["ffmpeg", "-i", str(path), f"{path}.flac"])


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """`(n, channels)` float32 to the end. Not `file.blocks`, which trusts the header's length."""
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        yield block
