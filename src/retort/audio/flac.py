"""FLAC: concatenated files, streams without a length, and truncated files.

The number of samples is determined from the last frame, because the header may not state it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from retort.audio.layout import Bytes, Part, skip_tags

_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_WINDOW = 1 << 16
_SEARCHED = 1 << 22
"""Bytes at the end of a stream in which its last frame is searched; frames are much shorter."""
_SIZES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608} | {code: 1 << code for code in range(8, 16)}


class _Frame(NamedTuple):
    start: int
    first: int
    """Its first sample in the stream."""
    size: int
    """Samples."""


def find_parts(content: Bytes, start: int) -> list[Part]:
    """One part for each FLAC stream; `start` is where the first begins."""
    parts = []
    while True:
        audio = _audio(content, start)
        match = _START.search(content, audio)
        end = len(content) if match is None else match.start()
        parts.append(_part(content, start, audio, end))
        if match is None:
            return parts
        start = match.start()


def _audio(content: Bytes, start: int) -> int:
    """Start of the frames, after the metadata blocks."""
    position, last = start + 4, False
    while not last and position + 4 <= len(content):
        last = bool(content[position] & 0x80)
        position += 4 + int.from_bytes(content[position + 1 : position + 4], "big")
    return min(position, len(content))


def _part(content: Bytes, start: int, audio: int, end: int) -> Part:
    info = bytes(content[start + 8 : start + 42])
    if len(info) < 34 or audio >= end:
        return Part(start, end)
    stated = (info[13] & 0x0F) << 32 | int.from_bytes(info[14:18], "big")
    there, complete = _samples(content, audio, end, int.from_bytes(info[2:4], "big"))
    if there is None or (there == stated and complete) or not there:
        return Part(start, end)
    cut = ""
    if there < stated:
        cut = f"its header states {stated} samples, {there} are there"
    elif not complete:
        cut = "the last frame is incomplete"
    info = info[:13] + bytes([info[13] & 0xF0 | there >> 32 & 0x0F]) + (there & 0xFFFFFFFF).to_bytes(4, "big")
    head = (
        b"fLaC" + bytes(content[start + 4 : start + 8]) + info + bytes(16)
    )  # the MD5 sum is that of the whole
    return Part(start + 42, end, head, cut)


def _samples(content: Bytes, audio: int, end: int, block: int) -> tuple[int | None, bool]:
    """Number of samples in complete frames, None if unknown; and whether the last frame is complete.

    A frame is found by its header's 8-bit checksum, which random bytes may match. The start of a frame is certain
    if the checksum of the previous frame ends there.
    """
    kind = bytes(content[audio : audio + 4])
    ends = _ends(content, audio, end)
    later: list[_Frame] = []
    bottom = top = end
    while top > audio and end - top < _SEARCHED:
        bottom = max(audio, top - _WINDOW)
        window = bytes(content[bottom : min(end, top + 16)])
        for match in reversed(list(_SYNC.finditer(window, 0, top - bottom + 1))):
            head = window[match.start() : match.start() + 16]
            frame = _header(head, bottom + match.start(), block)
            if frame is None or head[1] != kind[1] or head[3] & 0x0E != kind[3] & 0x0E:
                continue
            states = _checksums(content, frame.start, [*(each.start for each in later), *ends])
            if any(not states[each] for each in ends):
                return frame.first + frame.size, True
            for each in later:
                if not states[each.start] and each.first == frame.first + frame.size:
                    return each.first, False
            later.append(frame)
        top = bottom
    return None, False


def _ends(content: Bytes, audio: int, end: int) -> list[int]:
    """Possible ends of the last frame: at the end, before tags, before zeros."""
    ends = [end]
    tail = bytes(content[max(audio, end - _WINDOW) : end])
    begin = end - len(tail)
    for match in re.finditer(rb"TAG|APETAGEX|ID3", tail):
        if skip_tags(content, begin + match.start()) >= end:
            ends.append(begin + match.start())
            break
    ends.append(begin + len(tail.rstrip(b"\0")))
    return sorted(set(ends))


def _checksums(content: Bytes, start: int, ends: list[int]) -> dict[int, int]:
    """16-bit checksum of the bytes from `start` to each end; 0 at the end of a frame."""
    states, value, position = {}, 0, start
    for end in sorted(ends):
        value = _checksum(bytes(content[position:end]), 16, 0x8005, value)
        states[end], position = value, max(position, end)
    return states


def _header(head: bytes, start: int, block: int) -> _Frame | None:
    """The frame whose header this is, or None if its checksum is wrong."""
    if len(head) < 6 or head[3] & 1:
        return None
    code, rate = head[2] >> 4, head[2] & 15
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # of the number, coded as UTF-8
    length = max(ones, 1)
    if code == 0 or rate == 15 or ones == 1 or ones > 7:
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    position = 4 + length
    if code in (6, 7):
        size = int.from_bytes(head[position : position + code - 5], "big") + 1
        position += code - 5
    else:
        size = _SIZES[code]
    position += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if position >= len(head) or _checksum(head[:position], 8, 0x07) != head[position]:
        return None
    return _Frame(start, number if head[1] & 1 else number * block, size)


def _checksum(data: bytes, bits: int, polynomial: int, value: int = 0) -> int:
    table, mask, shift = _table(bits, polynomial), (1 << bits) - 1, bits - 8
    for byte in data:
        value = value << 8 & mask ^ table[value >> shift ^ byte]
    return value


@cache
def _table(bits: int, polynomial: int) -> tuple[int, ...]:
    values = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 & 1 else 0)
        values.append(value & (1 << bits) - 1)
    return tuple(values)
