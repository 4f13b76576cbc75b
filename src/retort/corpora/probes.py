"""Headers of audio files: read when they are needed, or taken from an earlier reading in parts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from retort.audio.files import AudioInfo, open_source
from retort.common.errors import BadUtterance
from retort.common.json_reader import parse_json


class Header(NamedTuple):
    """Rate, length and channels of an audio file, and a description of missing data or an empty text."""

    info: AudioInfo
    warning: str


@dataclass
class Probes:
    """Headers that are known, and the share of the others that is read.

    Attributes:
        known: results by path, as :func:`read_probes` returns them.
        part, parts: only files of this part, counted from 1, are read; others are unusable.
        record: open file to which every result is appended.
        skipped: number of files of other parts.
    """

    known: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    part: int = 1
    parts: int = 1
    record: IO[str] | None = None
    skipped: int = 0

    def header(self, path: Path) -> Header:
        """As :func:`read_header`."""
        name = os.path.abspath(path)
        if int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) % self.parts != self.part - 1:
            self.skipped += 1
            raise BadUtterance("in another part of the preparation", where=path)
        found = self.known.get(name)
        if found is None or found.get("version") != _version(path):
            found = _probe(path)
            if self.record is not None:
                self.record.write(json.dumps({"path": name, **found}) + "\n")
                self.record.flush()
        if "error" in found:
            what, remedy = found["error"]
            raise BadUtterance(what, where=path, remedy=remedy)
        return Header(AudioInfo(*found["info"]), found["warning"])


_active: ContextVar[Probes | None] = ContextVar("probes", default=None)


@contextmanager
def using(probes: Probes) -> Iterator[Probes]:
    """Let :func:`read_header` in the block use these results."""
    token = _active.set(probes)
    try:
        yield probes
    finally:
        _active.reset(token)


def read_header(path: Path) -> Header:
    """The header of an audio file.

    Raises:
        BadUtterance: it cannot be read as audio, or belongs to another part.
    """
    probes = _active.get()
    if probes is not None:
        return probes.header(path)
    source = open_source(path)
    return Header(source.info, source.warning)


def read_probes(path: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """Results that a part has recorded, and whether it is complete; damaged lines are left out."""
    found: dict[str, dict[str, Any]] = {}
    done = False
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                content = parse_json(line)
                if content.get("done"):
                    done = True
                elif _is_result(content):
                    found[content.pop("path")] = content
    return found, done


def _is_result(content: dict[str, Any]) -> bool:
    info = content.get("info", [1, 1, 1])
    texts = [content["path"], content.get("warning", ""), *content.get("error", ("", ""))]
    return len(info) == 3 and all(type(each) is int for each in info) and all(isinstance(each, str) for each in texts)


def _version(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _probe(path: Path) -> dict[str, Any]:
    version = _version(path)
    try:
        source = open_source(path)
    except BadUtterance as error:
        return {"version": version, "error": [error.what, error.remedy]}
    return {"version": version, "info": list(source.info), "warning": source.warning}
