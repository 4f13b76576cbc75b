"""Atomic writing of files: they are complete or missing, even if the writing process dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from retort.common.errors import BadUtterance, UserError
from retort.common.locks import lock_descriptor

UPDATE = "Update Retort: pip install -U retort-asr"
LONGEST_TEXT = 2**20
"""Maximum bytes of a line of text: a sentence, or an n-gram."""
PARTIAL = ".partial"
"""Suffix of partial files."""


_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(PARTIAL)}")
_STALE_SECONDS = 600.0
"""On file systems without locks, a partial file of this age was left by a process that died."""
_cleared: set[str] = set()
_REMEDIES = {
    errno.EISDIR: "A folder is in the place of the file: move it away",
    errno.ENOTDIR: "A file is in the place of its folder: move it away",
    errno.ENOENT: "Its folder was removed: run again",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Choose a folder that can be written"),
}


def write_whole(path: Path, content: str | bytes, *, remedy: str = "Free space and run again") -> None:
    """Write or replace a file atomically.

    The content is written under a unique name in the same folder, flushed to disk and renamed; text is
    written as UTF-8, with lone surrogates as JSON escapes. Partial files of processes that have
    ended are removed from the folder.

    Args:
        path: path in an existing folder.
        remedy: advice if the disk is full.

    Raises:
        UserError: it cannot be written; an existing file is not changed.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    if (folder := os.path.abspath(path.parent)) not in _cleared:
        _cleared.add(folder)
        clear_partial(path.parent)
    try:
        try:
            _write(path, data)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            _write(path, data)  # removed by another process before it was locked
        _flush(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})",
            where=path,
            remedy=_REMEDIES.get(error.errno or 0, remedy),
        ) from None


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            lock_descriptor(file.fileno())  # partial files without a lock are removed by others
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            partial.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def clear_partial(folder: Path, *, within: bool = False) -> None:
    """Remove partial files of :func:`write_whole` in processes that have ended.

    Args:
        within: include subfolders.
    """
    for path in folder.rglob(f"*{PARTIAL}") if within else folder.glob(f"*{PARTIAL}"):
        if not _NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), path.open("r+b") as file:
            old = time.time() - os.fstat(file.fileno()).st_mtime > _STALE_SECONDS
            if (locked := lock_descriptor(file.fileno())) or (locked is None and old):
                path.unlink()


def remove(path: Path) -> None:
    """Remove a file or a folder with its content, if it exists; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def lines_up_to(longest: int, file: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a possibly compressed file with a limit on their length, since kilobytes may unpack to gigabytes.

    Args:
        longest: maximum bytes of a line, including its end.
        file: file opened for reading.
        path: path of the file, for the error.

    Raises:
        UserError: a line is longer.
    """
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise UserError(
                f"line {number} is longer than {longest:,} bytes",
                where=path,
                remedy="Give a text file with lines",
            )
        yield line


def flush(paths: Iterable[Path]) -> None:
    """Flush these files, and their entries in their folders, to disk.

    Raises:
        OSError: one cannot be written.
    """
    folders: set[Path] = set()
    for path in paths:
        _flush(path)
        folders.add(path.parent)
    for folder in folders:
        _flush(folder)


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(path: str) -> bool:
    """Whether this is an address such as `https://...` or `s3://...`."""
    return _ADDRESS.match(path) is not None


def check_local(path: str) -> None:
    """Refuse an address (`https://...`) in place of a local file or folder.

    Raises:
        BadUtterance: with the address.
    """
    if is_address(path):
        raise BadUtterance(
            "a network address, not a local file or folder", where=path, remedy="Download it first"
        )


def expanded(path: str | Path) -> Path:
    """Expand a leading `~` to the home folder, if it is known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def check_format(found: object, known: int, where: Path) -> None:
    """Refuse files in a format that this version cannot read.

    Raises:
        UserError: with both numbers, and whether a later version wrote the files.
    """
    if found == known:
        return
    later = isinstance(found, int) and found > known
    by = "a later version of Retort wrote it: " if later else ""
    raise UserError(
        f"{by}its format is {str(found)[:40]}, this version reads {known}",
        where=where,
        remedy=UPDATE if later else "Export or fetch it again",
    )


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or that it can be created if it is missing.

    No file remains there.

    Raises:
        UserError: with the folder and the system's reason.
    """
    there = folder.absolute()
    try:
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        what = "this is a file, not a folder" if there.is_file() else error.strerror or str(error)
        raise UserError(
            f"nothing can be written here ({what})", where=folder, remedy="Choose another folder"
        ) from None


def contents(path: str | Path) -> str:
    """Hash of the files in a folder, or in its subfolder `model` if it exists, 32 hex digits; empty without files."""
    root = Path(path)
    root = root / "model" if (root / "model").is_dir() else root
    files = (
        sorted(each for each in root.rglob("*") if each.is_file() and not _passing(each))
        if root.is_dir()
        else []
    )
    digest = hashlib.sha256()
    for each in files:
        digest.update(f"{each.relative_to(root)} {each.stat().st_size}\n".encode())
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32] if files else ""


def _passing(path: Path) -> bool:
    """Whether a file is temporary: a lock or a partial file."""
    return path.suffix == PARTIAL or path.suffix == ".lock" or path.name in (".lock", "lock")


@contextlib.contextmanager
def opening_model(folder: Path, remedy: str) -> Iterator[None]:
    """Raise one clear error for any exception while the files of a model are read.

    The files may come from others and have any content.

    Raises:
        UserError: they are missing or broken, with the reason; a UserError is not changed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"its files are missing or broken ({reason})", where=folder, remedy=remedy) from None


def _flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
