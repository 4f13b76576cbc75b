"""Files that are whole or not there, at whatever moment the process that writes them dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from retort.errors import UserError
from retort.locks import lock_descriptor

PARTIAL = ".partial"
"""Suffix of what is being written, or was when its process died."""


_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(PARTIAL)}")
_STALE_SECONDS = 600.0
"""Where there are no locks, what nobody touched for so long was left by a process that died."""
_cleared: set[str] = set()
_REMEDIES = {
    errno.EISDIR: "A folder is in the place of the file: move it away",
    errno.ENOTDIR: "A file is in the place of its folder: move it away",
    errno.ENOENT: "Its folder was removed: run again",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Choose a folder that can be written"),
}


def write_whole(path: Path, content: str | bytes, *, remedy: str = "Free space, run again") -> None:
    """Write a file, or replace it in one step, so that nobody ever reads half of it.

    The content goes to a name beside it that no other process has, is flushed to the disk and renamed; text is
    written as UTF-8. What processes that have ended left half written in the same folder is taken away.

    Args:
        path: in a folder that exists.
        remedy: what to do when the disk is full.

    Raises:
        UserError: it cannot be written; what was there stays.
    """
    data = content.encode() if isinstance(content, str) else content
    if (folder := os.path.abspath(path.parent)) not in _cleared:
        _cleared.add(folder)
        clear_partial(path.parent)
    try:
        try:
            _write(path, data)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            _write(path, data)  # taken for one that was left, between the moments of its making and its lock
        _flush_folder(path.parent)
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
            lock_descriptor(file.fileno())  # while it lives: what has no lock was left
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            partial.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def clear_partial(folder: Path, *, within: bool = False) -> None:
    """Take away what :func:`write_whole` had half written in processes that have ended.

    Args:
        within: also in the folders below.
    """
    for path in folder.rglob(f"*{PARTIAL}") if within else folder.glob(f"*{PARTIAL}"):
        if not _NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), path.open("r+b") as file:
            old = time.time() - os.fstat(file.fileno()).st_mtime > _STALE_SECONDS
            if (locked := lock_descriptor(file.fileno())) or (locked is None and old):
                path.unlink()


def remove(path: Path) -> None:
    """Take away a file, or a folder with all that is in it, if it is there; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def contents(path: str | Path) -> str:
    """32 hex digits of the files in a folder, or in its folder `model` if it has one; empty where there is none."""
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
    """Whether a file is there only while something works: a lock, or what is half written."""
    return path.suffix == PARTIAL or path.suffix == ".lock" or path.name in (".lock", "lock")


@contextlib.contextmanager
def opening_model(folder: Path, remedy: str) -> Iterator[None]:
    """Whatever the files of a model make fail, where they are read and put together, is one line.

    Raises:
        UserError: they are missing or broken, with the reason; one that is raised inside passes as it is.
    """
    from omegaconf.errors import OmegaConfBaseException
    from safetensors import SafetensorError

    broken = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, OmegaConfBaseException)
    try:
        yield
    except UserError:
        raise
    except broken as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"its files are missing or broken ({reason})", where=folder, remedy=remedy) from None


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
