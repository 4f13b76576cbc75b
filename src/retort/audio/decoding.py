"""Decoders of audio files: blocks of all channels at the file's sampling rate."""

from __future__ import annotations

import io
import mmap
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
import soundfile

from retort.audio.layout import Part, Unreadable, find_parts
from retort.common.errors import BadUtterance

if TYPE_CHECKING:
    from typing_extensions import Buffer

LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
"""Limits of the sampling rate in Hz; other values are usually due to damaged headers."""
BLOCK = 1 << 18
"""Samples of all channels together that are decoded at once."""

_EXACT = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_FAR, _RUN_UP = 120, 10
"""Seconds before a seek position from which the decoder starts."""


class AudioInfo(NamedTuple):
    sampling_rate: int
    """Hz."""
    samples: int
    """In one channel."""
    channels: int


class Source(Protocol):
    """An audio file opened by a decoder.

    Attributes:
        info: rate, length and channels; the length is counted if its header is not reliable.
        warning: a sentence without a full stop about missing data (truncated file), or empty. Complete after
            `blocks` was read to the end.
    """

    info: AudioInfo
    warning: str

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """Samples `[first, last)`, to the end by default, as `(n, channels)` float32, full scale 1.

        Can be called again. May return fewer samples if the file ends before `last`.

        Raises:
            BadUtterance: the file is damaged in this range.
        """
        ...


def open_source(path: str | Path, content: bytes | None = None) -> Source:
    """Open an audio file.

    Args:
        content: the bytes of the file, if it is not on disk; `path` is then its name in errors.

    Raises:
        BadUtterance: the file does not exist, is not readable audio, has no samples, or a sampling rate out of bounds.
    """
    from retort.audio.media import MediaSource, media_format, spare_format

    path = Path(path)
    with readable(path, content is not None):
        if content is not None:
            copy: BinaryIO | None = _in_memory(content)
        else:
            copy = None if path.is_file() else copied(path)
        head = _head(path, copy)
        if format := media_format(head):
            return checked(MediaSource(path, format, copy), path)
        try:
            return checked(SoundFileSource(path, copy), path)
        except soundfile.SoundFileError:
            format = spare_format(head)
            if format is not None and find_spec("av") is not None:
                with suppress(BadUtterance):  # libsndfile's error is raised instead
                    return checked(MediaSource(path, format, copy), path)
            raise


def _head(path: Path, copy: BinaryIO | None) -> bytes:
    if copy is not None:
        return os.pread(copy.fileno(), 4096, 0)
    with path.open("rb") as stream:
        return stream.read(4096)


def checked(source: Source, path: Path) -> Source:
    """Return the source if the values in its header are within bounds."""
    rate = source.info.sampling_rate
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        bound = f"below {LOWEST_RATE} Hz" if rate < LOWEST_RATE else f"above {HIGHEST_RATE} Hz"
        raise BadUtterance(
            f"its sampling rate is {rate} Hz, {bound}", where=path, remedy="Check how it was written"
        )
    if not source.info.samples:
        raise BadUtterance("no samples in it", where=path, remedy="Replace the file or remove it")
    return source


class SoundFileSource:
    """A file read by libsndfile, part by part (see :mod:`retort.audio.layout`).

    Args:
        path: path of the file, or its name in errors.
        copy: content of a pipe, or a file in memory; None if `path` is a file.
    """

    def __init__(self, path: Path, copy: BinaryIO | None = None) -> None:
        self.path, self.warning, self._copy = path, "", copy
        with self._stream() as stream:
            self._parts = _parts(path, stream, self._copy is not None)
            found = [self._info(stream, part) for part in self._parts]
        first = found[0]
        if any(each[::2] != first[::2] for each in found):
            kinds = sorted({f"{each.sampling_rate} Hz, {each.channels} channels" for each in found})
            raise BadUtterance(
                f"contains consecutive streams of different kinds ({'; '.join(kinds)})",
                where=path,
                remedy=convert(path),
            )
        self._lengths = [each.samples for each in found]
        self.info = first._replace(samples=sum(self._lengths))
        self._note_what_is_missing()

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """See :class:`Source`."""
        position = first
        end = 0
        with readable(self.path, self._copy is not None), self._stream() as stream:
            for part, length in zip(self._parts, self._lengths):
                begin, end = end, end + length
                if position >= end or (last is not None and last <= begin):
                    continue
                stop = end if last is None else min(last, end)
                with self._opened(stream, part) as file:
                    for block in _read(file, position - begin, stop - begin, self.info.channels):
                        position += len(block)
                        yield block
                if position < stop:  # headers may be wrong
                    self._note(
                        f"ends early, at {position / self.info.sampling_rate:.2f} s (samples are missing)"
                    )
                    position = stop

    def _info(self, stream: BinaryIO, part: Part) -> AudioInfo:
        with self._opened(stream, part) as file:
            # A stream without a length, or one whose header states more than it has.
            if file.frames >= 1 << 48 or (part.cut and file.subtype not in _EXACT):
                samples = sum(map(len, _read(file, 0, None, file.channels)))
            else:
                samples = file.frames
            return AudioInfo(file.samplerate, samples, file.channels)

    def _note(self, what: str) -> None:
        if what not in self.warning:
            self.warning = f"{self.warning}; {what}" if self.warning else what

    def _note_what_is_missing(self) -> None:
        end = 0
        for part, length in zip(self._parts, self._lengths):
            end += length
            if part.cut:
                self._note(f"ends early, at {end / self.info.sampling_rate:.2f} s ({part.cut})")
            if part.rest:
                self._note(f"{part.rest} bytes after the samples in its header are ignored")

    @contextmanager
    def _stream(self) -> Iterator[BinaryIO]:
        if self._copy is not None:
            yield self._copy
        else:
            with self.path.open("rb") as stream:
                yield stream

    @contextmanager
    def _opened(self, stream: BinaryIO, part: Part) -> Iterator[soundfile.SoundFile]:
        whole = not part.head and not part.start and part.end == os.fstat(stream.fileno()).st_size
        with _SequentialFile(os.fsencode(self.path) if whole and self._copy is None else View(stream, part)) as file:
            yield file


def _read(file: soundfile.SoundFile, first: int, last: int | None, channels: int) -> Iterator[np.ndarray]:
    """`(n, channels)` float32. Not `file.blocks`, which trusts the header's length."""
    most = max(1, BLOCK // channels)
    skip = _approach(file, first)
    while skip > 0 and (size := len(file.read(min(most, skip), dtype="float32", always_2d=True))):
        skip -= size
    left = min(file.frames if last is None else last, file.frames) - first
    while left > 0 and len(block := file.read(min(most, left), dtype="float32", always_2d=True)):
        left -= len(block)
        yield block


class _SequentialFile(soundfile.SoundFile):
    """A file that is read sequentially: soundfile seeks after every read, which changes the output of lossy decoders."""

    def seekable(self) -> bool:
        """False."""
        return False


def _approach(file: soundfile.SoundFile, first: int) -> int:
    """Seek to the sample `first` or before it; return the number of samples until there.

    Compressed streams are exact only if decoding starts some time before, because frames depend
    on earlier ones.
    """
    if not first or not soundfile.SoundFile.seekable(file):
        return first
    if file.subtype in _EXACT:
        file.seek(min(first, file.frames))
        return 0
    if file.format in ("OGG", "MP3") and first > _FAR * file.samplerate:
        before = _RUN_UP * file.samplerate
        file.seek(min(first - before, file.frames))
        return before
    return first


def _parts(path: Path, stream: BinaryIO, is_copy: bool) -> tuple[Part, ...]:
    status = os.fstat(stream.fileno())
    if not status.st_size:
        raise BadUtterance("no samples in it", where=path, remedy="Replace the file or remove it")
    try:
        if is_copy:
            return _look(stream)
        return _known(path, status.st_size, status.st_mtime_ns)
    except Unreadable as error:
        raise BadUtterance(f"cannot be read as audio ({error})", where=path, remedy=convert(path)) from None


@lru_cache(maxsize=1 << 14)
def _known(path: Path, size: int, changed: int) -> tuple[Part, ...]:
    """Cached parts, because many cuts may be from one file."""
    with path.open("rb") as stream:
        return _look(stream)


def _look(stream: BinaryIO) -> tuple[Part, ...]:
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return tuple(find_parts(content))


class View(io.RawIOBase):
    """A part of a file as a file object."""

    def __init__(self, stream: BinaryIO, part: Part) -> None:
        super().__init__()
        self._stream, self._part = stream, part
        self._size = len(part.head) + part.end - part.start
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As :meth:`io.IOBase.seek`."""
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        """As :meth:`io.IOBase.tell`."""
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """As :meth:`io.RawIOBase.readinto`."""
        into = memoryview(buffer).cast("B")
        position, head = self._position, self._part.head
        if position < len(head):
            data = head[position : position + len(into)]
        else:
            start = self._part.start + position - len(head)
            data = os.pread(self._stream.fileno(), max(0, min(len(into), self._part.end - start)), start)
        into[: len(data)] = data
        self._position += len(data)
        return len(data)


def _in_memory(content: bytes) -> BinaryIO:
    """A file in memory; the decoders need a descriptor."""
    file = os.fdopen(os.memfd_create("audio"), "w+b")
    file.write(content)
    file.flush()
    return file


def copied(path: Path) -> BinaryIO:
    """Copy a pipe, which cannot be read twice, to a temporary file that is deleted when closed."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    with path.open("rb") as pipe:
        shutil.copyfileobj(pipe, copy, 1 << 20)
    copy.flush()
    return cast(BinaryIO, copy)


@contextmanager
def readable(path: Path, in_memory: bool = False) -> Iterator[None]:
    """Convert any error of reading a file to one line."""
    if in_memory:
        pass
    elif path.is_dir():
        raise BadUtterance("a folder, not an audio file", where=path, remedy="Pass the files in it")
    elif not path.exists():
        raise BadUtterance("no such file", where=path, remedy="Check the path")
    elif path.is_file() and not path.stat().st_size:
        raise BadUtterance(
            "the file is empty (0 bytes)", where=path, remedy="Replace the file or remove it"
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
    """The remedy for all formats."""
    return "Convert it: " + shlex.join(["ffmpeg", "-i", os.fspath(path), f"{path}.flac"])
