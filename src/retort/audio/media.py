"""Formats that libsndfile does not read (m4a, mp4, webm, aac, amr, wma), through PyAV: the extra `media`."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retort.audio.decoding import AudioInfo, convert, readable
from retort.audio.layout import Bytes, skip_id3
from retort.common.errors import BadUtterance

_ONCE = {
    "matroska": re.compile(rb"\x1aE\xdf\xa3.{0,8}B[\x82\x86\xf7]", re.DOTALL),
    "amr": re.compile(rb"#!AMR(-WB)?\n"),
    "asf": re.compile(rb"0&\xb2u\x8ef\xcf\x11"),
}
"""Signatures at the start of a file, also of a second one after it."""
_SLACK = 0.5
"""Maximum difference in seconds between a header's length and the decoded length."""
_ESTIMATED = ("aac", "amr")
"""Formats that do not state their length."""


def media_format(head: bytes) -> str | None:
    """FFmpeg's name for the format of a file that begins with these bytes (a few hundred), or None.

    FFmpeg's own detection is not used, because some of its formats are lists of other files and addresses.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    start = skip_id3(head, 0) if head.startswith(b"ID3") else 0
    magics = {
        rb"\x1aE\xdf\xa3": "matroska",
        rb"#!AMR": "amr",
        rb"\xff[\xf0\xf1\xf8\xf9]": "aac",
        rb"0&\xb2u": "asf",
    }
    return next((name for magic, name in magics.items() if re.match(magic, head[start : start + 16])), None)


def spare_format(head: bytes) -> str | None:
    """FFmpeg's name for a format of which libsndfile reads only some encodings."""
    magics = {b"RIFF": "wav", b"caff": "caf", b"OggS": "ogg", b"FORM": "aiff"}
    return magics.get(head[:4])


class MediaSource:
    """A file read by PyAV; see :class:`retort.audio.decoding.Source`.

    Args:
        format: FFmpeg's name of the format.
        copy: content of a pipe, or a file in memory; None if `path` is a file.

    Raises:
        BadUtterance: PyAV is not installed, or the file has another format, is damaged or has no audio.
    """

    def __init__(self, path: Path, format: str, copy: BinaryIO | None = None) -> None:
        self.path, self.warning, self._format = path, "", format
        _import(path)
        self._copy = copy
        with readable(path, copy is not None):
            if self._copy is not None:
                self.info, notes = self._count()
            else:
                status = path.stat()
                self.info, notes = _counted(path, format, status.st_size, status.st_mtime_ns)
        self.warning = "; ".join(notes)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """See :class:`retort.audio.decoding.Source`."""
        position = 0
        with readable(self.path, self._copy is not None):
            for block in self._decode([]):
                start, end = max(0, first - position), len(block)
                if last is not None:
                    end = min(end, last - position)
                if start < end:
                    yield block[start:end]
                position += len(block)
                if last is not None and position >= last:
                    return

    def _count(self) -> tuple[AudioInfo, list[str]]:
        """Rate, length and channels by decoding the file; and descriptions of missing data."""
        notes: list[str] = []
        samples, channels = 0, 0
        for block in self._decode(notes):
            samples, channels = samples + len(block), block.shape[1]
        return AudioInfo(self._rate, samples, channels), notes

    def _decode(self, notes: list[str]) -> Iterator[np.ndarray]:
        """Blocks `(n, channels)` float32; problems are added to `notes`."""
        av = _import(self.path)
        stream = self._copy if self._copy is not None else self.path.open("rb")
        try:
            stream.seek(0)
            _refuse_several(self.path, stream, self._format)
            cut = _shorter_than_stated(stream, self._format)
            with av.open(stream, format=self._format) as container:
                yield from self._frames(av, container, cut, notes)
        except av.FFmpegError as error:
            reason = str(error.strerror or error).rstrip(".")
            raise BadUtterance(
                f"cannot be read as audio ({reason})", where=self.path, remedy=convert(self.path)
            ) from None
        finally:
            if stream is not self._copy:
                stream.close()

    def _frames(self, av: Any, container: Any, cut: str, notes: list[str]) -> Iterator[np.ndarray]:
        streams = container.streams.audio
        if not streams:
            raise BadUtterance("contains no audio", where=self.path, remedy="Replace the file or remove it")
        if len(streams) > 1:
            notes.append(f"contains {len(streams)} audio tracks, only the first is read")
        resampler, self._rate, samples = None, 0, 0
        for packet in container.demux(streams[0]):
            if packet.is_corrupt:
                cut = "the last frame is incomplete"
            try:
                frames = packet.decode()
            except av.FFmpegError:
                cut = cut or "a frame is damaged"
                continue
            for frame in frames:
                kind = frame.sample_rate, frame.layout.name
                if resampler is None:
                    first_kind, self._rate = kind, frame.sample_rate
                    resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
                if kind != first_kind:
                    raise BadUtterance(
                        "its sampling rate or channels change in the middle",
                        where=self.path,
                        remedy=convert(self.path),
                    )
                for each in resampler.resample(frame):
                    block = each.to_ndarray().T
                    samples += len(block)
                    yield np.ascontiguousarray(block)
        if self._rate:
            self._note_length(container, streams[0], samples / self._rate, cut, notes)

    def _note_length(self, container: Any, stream: Any, seconds: float, cut: str, notes: list[str]) -> None:
        stated = 0.0
        if self._format not in _ESTIMATED:
            if stream.duration:
                stated = float(stream.duration * stream.time_base)
            elif container.duration:
                stated = container.duration / 1e6
        if stated > seconds + _SLACK:
            cut = f"its header states {stated:.2f} s"
        if cut:
            notes.append(f"ends early, at {seconds:.2f} s ({cut})")


@lru_cache(maxsize=1 << 12)
def _counted(path: Path, format: str, size: int, changed: int) -> tuple[AudioInfo, list[str]]:
    source = MediaSource.__new__(MediaSource)
    source.path, source._format, source._copy = path, format, None
    return source._count()


def _import(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise BadUtterance(
            "this format needs PyAV, which is not installed",
            where=path,
            remedy="Install it: pip install 'retort-asr[media]'; or c" + convert(path)[1:],
        ) from None
    av.logging.set_level(None)
    return av


def _refuse_several(path: Path, stream: BinaryIO, format: str) -> None:
    """Refuse concatenated files, of which FFmpeg would read only the first."""
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if format == "mov":
            several = _boxes(content).count(b"moov") > 1
        else:
            several = format in _ONCE and _ONCE[format].search(content, 8) is not None
    if several:
        raise BadUtterance(
            "contains several concatenated files", where=path, remedy="Divide it, or convert each by itself"
        )


def _shorter_than_stated(stream: BinaryIO, format: str) -> str:
    """Why a Matroska file ends early: its one segment is longer than the file. Empty if it does not."""
    if format != "matroska":
        return ""
    head = os.pread(stream.fileno(), 4096, 0)
    position, size = _vint(head, 4)
    segment = position + size
    if head[segment : segment + 4] != b"\x18S\x80g":
        return ""
    position, size = _vint(head, segment + 4)
    there = os.fstat(stream.fileno()).st_size - position
    unknown = (1 << 7 * (position - segment - 4)) - 1  # all bits set: a live stream
    return f"its header states {size} bytes, {there} are there" if there < size != unknown else ""


def _vint(head: bytes, start: int) -> tuple[int, int]:
    """A variable-length integer of Matroska: its end and value."""
    length = 9 - head[start].bit_length() if start < len(head) and head[start] else 1
    value = int.from_bytes(head[start : start + length], "big")
    return start + length, value & (1 << 7 * length) - 1


def _boxes(content: Bytes) -> list[bytes]:
    """The names of the outermost boxes of an MP4 file."""
    names, position = [], 0
    while position + 8 <= len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        names.append(bytes(content[position + 4 : position + 8]))
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        if size < 8:
            break
        position += size
    return names
