"""Formats whose header states how many bytes follow: WAV, RF64, W64, AIFF, AU, CAF, NIST SPHERE."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from retort.audio.layout import Bytes, Part, Unreadable, skip_tags

UNKNOWN = 0x7FFF0000
"""Sizes from here to 2^31 and the largest of 32 bits are those of streams, whose length was not known."""

_FEW = 4096


class Extent(NamedTuple):
    """Where a file in such a format ends by its header."""

    end: int | None
    """End of the file; None if the header does not state it."""
    missing: str = ""
    """Description of missing data ("its header states ..."), or empty."""
    head: bytes = b""
    """Replacement of a header that libsndfile does not accept."""
    begin: int = 0
    """Position after the header, if there is a `head`."""


Order: TypeAlias = Literal["little", "big"]
Finder: TypeAlias = Callable[[Bytes, int], Extent]


def finder(magic: bytes) -> Finder | None:
    """How to find the end of a file that begins so."""
    for start, found in _FINDERS.items():
        if re.match(start, magic, re.DOTALL):
            return found
    return None


def find_parts(content: Bytes, find: Finder) -> list[Part]:
    """One part for each file; what follows the last one and is no audio file (tags, padding) stays with it."""
    parts: list[Part] = []
    start = 0
    while True:
        extent = find(content, start)
        following = _following(content, start, extent.end)
        if following is None:
            begin = extent.begin if extent.head else start
            rest = 0 if extent.end is None else _rest(content, extent.end)
            end = extent.end if rest and extent.end is not None else len(content)
            return [*parts, Part(begin, end, extent.head, extent.missing, rest)]
        parts.append(Part(start, following, cut=extent.missing))
        start = following


def _following(content: Bytes, start: int, end: int | None) -> int | None:
    """Where the next file of the same kind begins."""
    magic = next(each for each in _FINDERS if re.match(each, content[start : start + 16], re.DOTALL))
    if end is None:  # the length is not known: anywhere, by a signature that is long enough
        match = re.compile(magic, re.DOTALL).search(content, start + 16) if len(magic) > 12 else None
        return None if match is None else match.start()
    for padded in (end, end + 1, skip_tags(content, min(end, len(content)))):
        if padded + 16 < len(content) and re.match(magic, content[padded : padded + 16], re.DOTALL):
            return padded
    return None


def _rest(content: Bytes, end: int) -> int:
    """Number of bytes after the end that are neither tags nor zeros; a few are ignored."""
    after = skip_tags(content, end)
    size = len(content) - after
    if size < _FEW or not bytes(content[after : after + _FEW]).strip(b"\0"):
        return 0
    return size


def _unknown(size: int) -> bool:
    return size == 0 or UNKNOWN <= size <= 0x80000000 or size >= 0xFFFF0000


def _chunked(content: Bytes, start: int, order: Order, data: bytes) -> Extent:
    """RIFF and AIFF: chunks of a name and a size."""
    position, unknown, samples = start + 12, False, False
    size = int.from_bytes(content[start + 4 : start + 8], order)
    end = len(content) if _unknown(size) else start + 8 + size
    while position + 8 <= len(content):
        name = bytes(content[position : position + 4])
        length = int.from_bytes(content[position + 4 : position + 8], order)
        if name == data:
            if samples:
                raise Unreadable("several chunks of samples")
            samples = True
            there = len(content) - position - 8
            if length == 0 and there and not _chunk_fits(content, position + 8, order):
                # An interrupted recording; libsndfile considers it empty.
                head = bytes(content[start : position + 4]) + there.to_bytes(4, order)
                return Extent(None, "", head, position + 8)
            if _unknown(length):
                unknown = True
                break
            if length > there:
                return Extent(len(content), f"its header states {length} bytes of samples, {there} are there")
        elif not re.match(rb"[ -~]{4}", name):
            break
        position += 8 + length + length % 2
        if position >= end:
            break
    return Extent(None if unknown else min(len(content), max(end, position)))


def _chunk_fits(content: Bytes, start: int, order: Order) -> bool:
    """Whether there is a name, and a size that the file has room for."""
    size = int.from_bytes(content[start + 4 : start + 8], order)
    return re.match(rb"[ -~]{4}", content[start : start + 4]) is not None and start + 8 + size <= len(content)


def _riff(content: Bytes, start: int) -> Extent:
    return _chunked(content, start, "little" if content[start : start + 4] == b"RIFF" else "big", b"data")


def _aiff(content: Bytes, start: int) -> Extent:
    return _chunked(content, start, "big", b"SSND")


def _rf64(content: Bytes, start: int) -> Extent:
    if content[start + 12 : start + 16] != b"ds64":
        return Extent(None)
    return _sized(content, start, start + 8 + int.from_bytes(content[start + 20 : start + 28], "little"))


def _w64(content: Bytes, start: int) -> Extent:
    return _sized(content, start, start + int.from_bytes(content[start + 16 : start + 24], "little"))


def _au(content: Bytes, start: int) -> Extent:
    order: Order = "big" if content[start : start + 4] == b".snd" else "little"
    offset, size = (int.from_bytes(content[start + at : start + at + 4], order) for at in (4, 8))
    return Extent(None) if _unknown(size) else _sized(content, start, start + offset + size)


def _caf(content: Bytes, start: int) -> Extent:
    position = start + 8
    while position + 12 <= len(content):
        name = bytes(content[position : position + 4])
        size = int.from_bytes(content[position + 4 : position + 12], "big", signed=True)
        end = position + 12 + size
        if name == b"data" and size < 0:
            return Extent(None)
        if name == b"data" and end > len(content):  # libsndfile refuses it
            there = len(content) - position - 12
            head = bytes(content[start : position + 4]) + there.to_bytes(8, "big")
            return _sized(content, start, end)._replace(head=head, begin=position + 12)
        if size < 0 or end > len(content) or not re.match(rb"[ -~]{4}", name):
            break
        position = end
    return Extent(position)


def _nist(content: Bytes, start: int) -> Extent:
    head = bytes(content[start : start + 1024])
    fields = {
        name: int(value)
        for name, value in re.findall(rb"\n(sample_count|sample_n_bytes|channel_count) -i (\d{1,12})", head)
    }
    size = re.match(rb"NIST_1A\n *(\d{1,6})\n", head)
    if len(fields) < 3 or size is None or b"shorten" in head:
        return Extent(None)
    samples = fields[b"sample_count"] * fields[b"sample_n_bytes"] * fields[b"channel_count"]
    return _sized(content, start, start + int(size[1]) + samples)


def _sized(content: Bytes, start: int, end: int) -> Extent:
    if end > len(content):
        reason = f"its header states {end - start} bytes, {len(content) - start} are there"
        return Extent(len(content), reason)
    return Extent(end)


_FINDERS: dict[bytes, Finder] = {
    rb"RIF[FX]....WAVE": _riff,
    rb"RF64....WAVE": _rf64,
    rb"FORM....AIF[FC]": _aiff,
    rb"riff\x2e\x91\xcf\x11\xa5\xd6": _w64,
    rb"caff\x00\x01": _caf,
    rb"(\.snd|dns\.)": _au,
    rb"NIST_1A\n": _nist,
}
