"""MPEG audio (MP3, MP2, MP1): lengths by counting frames.

A decoder takes the length from the Xing, Info or VBRI header in the first frame. If it is missing (a recorded
stream) the length is estimated from the bit rate; for concatenated files it is that of the first.
"""

from __future__ import annotations

from typing import NamedTuple

from retort.audio.layout import Bytes, Part, skip_tags

_RATES = {
    (3, 3): (
        0,
        32,
        64,
        96,
        128,
        160,
        192,
        224,
        256,
        288,
        320,
        352,
        384,
        416,
        448,
    ),  # (version, layer): kbit/s
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES[2, 1] = _RATES[2, 2]
_HERTZ = (44100, 48000, 32000)
_NEAR = 4096
"""Bytes at the start of a file in which the first frame is searched; later ones are searched to the end."""


class _Frame(NamedTuple):
    stream: tuple[int, int, int, bool]
    """MPEG version (3: 1, 2: 2, 0: 2.5), layer (1: III), sampling rate, mono: the same in all frames of a stream."""
    size: int
    """Bytes; 0 for a free format, whose frames do not state it."""


def is_frame(content: Bytes, start: int) -> bool:
    """Whether a frame begins there and is followed by another one."""
    frame = _frame(content, start)
    return frame is not None and _follows(content, start, frame)


def find_parts(content: Bytes) -> list[Part]:
    """The streams of an MPEG file, each with a header that states its frames; one part if none is found."""
    parts: list[Part] = []
    start = _next_stream(content, skip_tags(content, 0), _NEAR)
    while start is not None:
        frame = _frame(content, start)
        assert frame is not None
        part, end = _stream(content, start, frame)
        if part is not None:
            parts.append(part)
        start = _next_stream(content, skip_tags(content, end))
    return parts or [Part(0, len(content))]


def _frame(content: Bytes, start: int) -> _Frame | None:
    head = content[start : start + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bits, hertz = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 0 or bits == 15 or hertz == 3:
        return None
    rate = _HERTZ[hertz] >> (0, 0, 1, 0)[version] >> (2 if version == 0 else 0)
    kilobits = _RATES[3 if version == 3 else 2, layer][bits]
    padding = head[2] >> 1 & 1
    if layer == 3:
        size = (12000 * kilobits // rate + padding) * 4
    else:
        size = (72000 if layer == 1 and version != 3 else 144000) * kilobits // rate + padding
    return _Frame((version, layer, rate, head[3] >> 6 == 3), size if kilobits else 0)


def _follows(content: Bytes, start: int, frame: _Frame) -> bool:
    """Whether a frame of the same stream, a tag or the end of the file follows."""
    end = start + frame.size
    if not frame.size:
        return content.find(bytes(content[start : start + 2]), start + 4, start + 4096) > 0
    if end >= len(content) or skip_tags(content, end) > end:
        return True
    after = _frame(content, end)
    return after is not None and after.stream == frame.stream


def _next_stream(content: Bytes, start: int, within: int | None = None) -> int | None:
    """Start of the next frame that is followed by another one."""
    limit = len(content) if within is None else min(len(content), start + within)
    while (start := content.find(b"\xff", start, limit)) >= 0:
        frame = _frame(content, start)
        # A single last frame, or four random bytes at the end of a file, are not a stream.
        if frame is not None and 0 < frame.size < len(content) - start and _follows(content, start, frame):
            return start
        start += 1
    return None


def _stream(content: Bytes, start: int, first: _Frame) -> tuple[Part | None, int]:
    """The frames from `start` to the next header of a stream, to the end of frames, or to the end of the file."""
    tag = _Tag.read(content, start, first)
    begin = position = start if tag is None else start + first.size
    frames, cut = 0, False
    while (frame := _frame(content, position)) is not None and frame.stream == first.stream and frame.size:
        if position + frame.size > len(content):
            cut = True
            break
        if frames and _Tag.read(content, position, frame) is not None:
            break
        frames += 1
        position += frame.size
    if not frames:
        return None, position if not cut else len(content)
    stated = None if tag is None else tag.frames
    if stated is not None and abs(stated - frames) <= 1 and not cut:
        return Part(start, position), position  # some encoders count the frame of the header
    reason = ""
    if stated is not None and frames < stated:
        reason = f"its header states {stated} frames, {frames} are there"
    elif cut:
        reason = "the last frame is incomplete"
    header = _header(content[start : start + 4], frames, None if stated is None or frames > stated else tag)
    return Part(begin, position, header, reason), len(content) if cut else position


class _Tag(NamedTuple):
    """A frame without audio that states the length of the stream."""

    frames: int | None
    lame: bytes
    """Number of samples to omit at the start and end, and other values; 36 bytes or none."""

    @classmethod
    def read(cls, content: Bytes, start: int, frame: _Frame) -> _Tag | None:
        version, layer, _, mono = frame.stream
        if layer != 1:
            return None
        data = bytes(content[start : start + min(frame.size, 256)])
        if data[36:40] == b"VBRI":
            return cls(int.from_bytes(data[50:54], "big"), b"")
        at = 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17))
        for skip in (0, 2):  # with a checksum, two bytes more
            if data[at + skip : at + skip + 4] in (b"Xing", b"Info"):
                return cls._xing(data[at + skip :])
        return None

    @classmethod
    def _xing(cls, data: bytes) -> _Tag:
        flags, position = int.from_bytes(data[4:8], "big"), 8
        frames = None
        if flags & 1:
            frames, position = int.from_bytes(data[8:12], "big"), 12
        position += 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        lame = data[position : position + 36]
        return cls(frames, lame if len(lame) == 36 and lame[:4] in (b"LAME", b"Lavf", b"Lavc") else b"")


def _header(head: bytes, frames: int, tag: _Tag | None) -> bytes:
    """A frame that states the number of the following frames; empty for layers without such a header."""
    version, layer, mono = head[1] >> 3 & 3, head[1] >> 1 & 3, head[3] >> 6 == 3
    if layer != 1:
        return b""
    own = bytes(
        [head[0], head[1] | 1, 0x90 | head[2] & 0x0C, head[3]]
    )  # no checksum, no padding, medium bit rate
    frame = _frame(own, 0)
    assert frame is not None
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    lame = b"" if tag is None else tag.lame
    if lame:  # the samples to leave out at the end were cut off with the end
        lame = lame[:22] + bytes([lame[22] & 0xF0, 0]) + lame[24:]
    data = own + bytes(side) + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big") + lame
    return data.ljust(frame.size, b"\0")
