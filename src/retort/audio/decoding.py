"""Decoders of audio files: blocks of all channels at the file's own sampling rate."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile

from retort.errors import BadUtterance

LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
"""Hz. Below it too little of speech is left; outside, a header is most often damaged."""
BLOCK = 1 << 18
"""Samples of all channels together that are decoded at once."""


class AudioInfo(NamedTuple):
    sampling_rate: int
    """Hz."""
    samples: int
    """In one channel."""
    channels: int


class Source(Protocol):
    """An audio file that a decoder has opened.

    Attributes:
        info: what is in it, counted where its header cannot be trusted.
        warning: a sentence without a full stop about what is missing in it (it ends early), or empty. Complete when
            `blocks` was read to its end.
    """

    info: AudioInfo
    warning: str

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """Samples `[first, last)`, to the end by default, as `(n, channels)` float32, full scale 1.

        Can be called again. May give less than `last` where the file ends before it.

        Raises:
            BadUtterance: the file is damaged where it is read.
        """
        ...


def open_source(path: str | Path) -> Source:
    """Open an audio file.

    Raises:
        BadUtterance: no such file, not audio that can be read, no samples, or a sampling rate out of bounds.
    """
    path = Path(path)
    with readable(path):
        source = SoundFileSource(path)
    return checked(source, path)


def checked(source: Source, path: Path) -> Source:
    """The source, if what its header says is within bounds."""
    rate = source.info.sampling_rate
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        bound = f"below {LOWEST_RATE} Hz" if rate < LOWEST_RATE else f"above {HIGHEST_RATE} Hz"
        raise BadUtterance(
            f"its sampling rate is {rate} Hz, {bound}", where=path, remedy="Check how it was written"
        )
    if not source.info.samples:
        raise BadUtterance("no samples in it", where=path, remedy="Replace the file or leave it out")
    return source


class SoundFileSource:
    """What libsndfile reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warning = ""
        self._spooled = None if path.is_file() else _spooled(path)
        with self._opened() as file:
            if (
                file.frames >= 1 << 48
            ):  # libsndfile's length of a streamed FLAC, which it cannot read to its end
                raise BadUtterance("does not state its length", where=path, remedy=convert(path))
            self.info = AudioInfo(file.samplerate, file.frames, file.channels)

    @contextmanager
    def _opened(self) -> Iterator[soundfile.SoundFile]:
        if self._spooled is not None:
            self._spooled.seek(0)
        with soundfile.SoundFile(self._spooled or self.path) as file:
            yield file

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """See :class:`Source`."""
        most = max(1, BLOCK // self.info.channels)
        with readable(self.path), self._opened() as file:
            if first:
                file.seek(min(first, file.frames))
            left = None if last is None else last - first
            # Not `file.blocks`, which trusts the header's length.
            while left is None or left > 0:
                wanted = most if left is None else min(most, left)
                block = file.read(wanted, dtype="float32", always_2d=True)
                if not len(block):
                    return
                if left is not None:
                    left -= len(block)
                yield block


def _spooled(path: Path) -> tempfile.SpooledTemporaryFile[bytes]:
    """A pipe cannot be read twice, nor from its end: a copy on disk."""
    copy = tempfile.SpooledTemporaryFile(max_size=1 << 24)  # noqa: SIM115
    with path.open("rb") as pipe:
        shutil.copyfileobj(pipe, copy, 1 << 20)
    return copy


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside with a file becomes one line about it."""
    if path.is_dir():
        raise BadUtterance("a folder, not an audio file", where=path, remedy="Give the files in it")
    if not path.exists():
        raise BadUtterance("no such file", where=path, remedy="Check the path")
    if path.is_file() and not path.stat().st_size:
        raise BadUtterance(
            "the file is empty (0 bytes)", where=path, remedy="Replace the file or leave it out"
        )
    try:
        yield
    except PermissionError:
        raise BadUtterance("may not be read", where=path, remedy="Change its permissions") from None
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        # libsndfile: "Error opening '/long/path': Format not recognised."; TypeError: a headerless .raw file
        reason = str(error).rsplit(": ", 1)[-1].split("\n")[0].rstrip(".") or type(error).__name__
        raise BadUtterance(f"cannot be read as audio ({reason})", where=path, remedy=convert(path)) from None


def convert(path: Path) -> str:
    """The remedy that always works."""
    return "Convert it: " + shlex.join(["ffmpeg", "-i", os.fspath(path), f"{path}.flac"])
