"""Ogg: concatenated streams (chained files, recorded radio), and truncated streams."""

from __future__ import annotations

from typing import NamedTuple

from retort.audio.layout import Bytes, Part, Unreadable

_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
_CUT, _NO_END = "the last page is incomplete", "the stream has no last page"
_FIRST, _LAST = 2, 4  # flags of a page


class _Page(NamedTuple):
    start: int
    end: int
    flags: int
    body: int
    """Where its body begins."""


def find_parts(content: Bytes) -> list[Part]:
    """One part for each link of the chain.

    Raises:
        Unreadable: several audio streams side by side in one link.
    """
    parts: list[Part] = []
    link: list[_Page] = []  # the first pages of the streams of a link, which come before all others
    begin, position, ended, opening = 0, 0, False, True
    while (page := _page(content, position)) is not None:
        first = page.flags & _FIRST
        if first and not opening:
            cut = _CUT if page.start > position else "" if ended else _NO_END
            parts.append(Part(begin, page.start, cut=cut))
            begin, link, ended = page.start, [], False
        opening = bool(first)
        if first:
            link.append(page)
            if sum(bytes(content[each.body : each.body + 8]).startswith(_CODECS) for each in link) > 1:
                raise Unreadable("several audio streams side by side")
        if page.flags & _LAST:
            ended = True
        position = page.end
    cut = ""
    if position < len(content) and content.find(b"OggS", position) == position:
        cut = _CUT
    elif not ended:
        cut = _NO_END
    parts.append(Part(begin, len(content), cut=cut))
    return parts


def _page(content: Bytes, start: int) -> _Page | None:
    """The complete page that begins at `start` or, if the file is damaged there, after it."""
    while (start := content.find(b"OggS", start)) >= 0:
        head = bytes(content[start : start + 27])
        if len(head) < 27:
            return None
        body = start + 27 + head[26]
        end = body + sum(content[start + 27 : body])
        # A page that is cut off covers the pages of the next file.
        covers = content[end : end + 4] != b"OggS" and content.find(b"OggS", start + 4, end + 3) >= 0
        if end <= len(content) and not covers:
            return _Page(start, end, head[5], body)
        start += 4
    return None
