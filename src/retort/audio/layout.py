"""The structure of audio files beyond what libsndfile reads: consecutive streams, wrong lengths.

libsndfile stops at the end according to the first header. A file is therefore divided into parts, each of which it
reads completely as a separate file.
"""

from __future__ import annotations

import mmap
import re
from typing import NamedTuple, TypeAlias

Bytes: TypeAlias = "bytes | mmap.mmap"


class Part(NamedTuple):
    """A range of bytes that is read as a separate file."""

    start: int
    end: int
    head: bytes = b""
    """Header in front of the range, in place of one with a wrong or missing length."""
    cut: str = ""
    """Reason of a truncated part ("its header states 51360 samples"), or empty."""
    rest: int = 0
    """Number of bytes after its end that are not read."""


class Unreadable(Exception):
    """The file has content that cannot be read, with a description."""


def find_parts(content: Bytes) -> list[Part]:
    """The parts of a file in order; a single part for other formats.

    Raises:
        Unreadable: it contains more than can be decoded.
    """
    from retort.audio import chunks, flac, mp3, ogg

    magic = bytes(content[:16])
    if magic.startswith(b"OggS"):
        return ogg.find_parts(content)
    if magic.startswith(b"fLaC"):
        return flac.find_parts(content, 0)
    if finder := chunks.finder(magic):
        return chunks.find_parts(content, finder)
    if magic.startswith(b"ID3"):
        start = skip_id3(content, 0)
        if content[start : start + 4] == b"fLaC":
            return flac.find_parts(content, start)
        return mp3.find_parts(content)
    if mp3.is_frame(content, 0):
        return mp3.find_parts(content)
    return [Part(0, len(content))]


def skip_id3(content: Bytes, start: int) -> int:
    """The position after the ID3v2 tag that begins at `start`."""
    head = bytes(content[start : start + 10])
    if len(head) < 10:
        return len(content)
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return min(len(content), start + 10 + size + (10 if head[5] & 0x10 else 0))


_TAG = re.compile(rb"TAG|ID3|APETAGEX|LYRICSBEGIN")


def skip_tags(content: Bytes, start: int) -> int:
    """The position after the tags (ID3v1, ID3v2, APE, Lyrics3) that begin at `start`."""
    while match := _TAG.match(content, start):
        tag = match.group()
        if tag == b"TAG":
            end = start + (355 if content[start : start + 4] == b"TAG+" else 128)
        elif tag == b"ID3":
            end = skip_id3(content, start)
        elif tag == b"APETAGEX":
            size = int.from_bytes(content[start + 12 : start + 16], "little")
            is_header = content[start + 23] & 0x20 if start + 24 <= len(content) else 0
            end = start + 32 + (size if is_header else 0)
        else:
            end = _end_of_lyrics(content, start)
        start = min(end, len(content))
    return start


def _end_of_lyrics(content: Bytes, start: int) -> int:
    ends = [content.find(mark, start) for mark in (b"LYRICS200", b"LYRICSEND")]
    found = [end + 9 for end in ends if end >= 0]
    return min(found, default=len(content))
