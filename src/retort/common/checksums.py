"""SHA-256 checksums of models, checkpoints, tokenizers, language models and decoding graphs.

`checksums.json` is in the folder of the files. A folder without it is not checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.files import flush, write_whole
from retort.common.json_reader import read_json

SUMS = "checksums.json"
FORMAT = 1
_NOT_LISTED = {SUMS, "README.md"}
"""Files without a checksum; a README may be edited."""
_POINTER = b"version https://git-lfs"
_verified: set[tuple[object, ...]] = set()
"""Files that this process has verified: path, inode, size, modification time, digest."""


def sha256(path: Path) -> str:
    """Hash of a file's content, 64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write the checksums of all files in a folder after flushing them to disk.

    Raises:
        OSError, UserError: a file cannot be read or written.
    """
    files = sorted(each for each in folder.rglob("*") if each.is_file() and each.name not in _NOT_LISTED)
    flush(files)
    listed = {
        each.relative_to(folder).as_posix(): {"bytes": each.stat().st_size, "sha256": sha256(each)}
        for each in files
    }
    write_whole(folder / SUMS, json.dumps({"format": FORMAT, "files": listed}, indent=1) + "\n")


def verify(folder: Path, *names: str, editable: Collection[str] = (), remedy: str) -> None:
    """Check the files of a folder with checksums of :func:`seal`; each is read once per process.

    Args:
        names: files and folders within it; by default all listed files.
        editable: text files that users may change; another length is then accepted.
        remedy: advice for a missing or damaged file.

    Raises:
        UserError: a file is missing or its content has changed, or the list of checksums is damaged.
    """
    for name, (size, digest) in _listed(folder, remedy).items():
        if not names or any(name == each or name.startswith(f"{each}/") for each in names):
            _verify(folder / name, size, digest, name in editable, remedy)


def verify_file(path: Path, remedy: str) -> None:
    """Check one file against the checksums of its folder, if it has any.

    Raises:
        UserError: as :func:`verify`.
    """
    verify(path.parent, path.name, remedy=remedy)


def _listed(folder: Path, remedy: str) -> dict[str, tuple[int, str]]:
    path = folder / SUMS
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = read_json(path)
        version = content["format"]
        if version != FORMAT:
            raise ValueError(f"format {version}, this version reads {FORMAT}")
        return {
            str(name): (int(each["bytes"]), str(each["sha256"])) for name, each in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"the list of checksums is damaged ({type(error).__name__}: {error})", where=path, remedy=remedy
        ) from None


def _verify(path: Path, size: int, digest: str, editable: bool, remedy: str) -> None:
    try:
        status = path.stat()
        seen = (os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns, digest)
        if seen in _verified:
            return
        if status.st_size != size:
            if not editable:
                raise UserError(_wrong_length(path, status.st_size, size), where=path, remedy=remedy)
        elif sha256(path) != digest:
            raise UserError(
                "damaged: its SHA-256 differs from its checksum", where=path, remedy=remedy
            )
    except FileNotFoundError:
        raise UserError("no such file", where=path, remedy=remedy) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, remedy=remedy) from None
    _verified.add(seen)


def _wrong_length(path: Path, there: int, size: int) -> str:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return "a pointer of Git LFS, not the file itself (`git lfs pull` fetches it)"
    return f"damaged: it has {there:,} bytes instead of {size:,}"
