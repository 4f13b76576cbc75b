"""File locks between processes; the locks of a process that dies are released.

They are `flock` locks, which the kernel, or the server of a network file system, releases when their process
has ended. The file of a lock is removed on release; a process that finds another file in its place tries again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from retort.common.errors import UserError
from retort.common.json_reader import read_json

LOCK = ".lock"
"""Name of the lock file in an experiment's folder."""
PATIENCE = 1.0
"""Seconds before waiting for a lock is reported, or raises an error."""
_POLL = 0.2
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks, such as NFS without its lock service."""

Waiting = Callable[[str], None]
"""Called once with a message before waiting for a lock."""

_descriptors: set[int] = set()
_held: dict[tuple[int, str], Lock] = {}
"""Experiments that are trained in threads of this process."""


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds."""

    path: Path
    descriptor: int

    @property
    def lost(self) -> bool:
        """Whether its file is missing or replaced, because the folder was removed."""
        try:
            there, own = os.stat(self.path), os.fstat(self.descriptor)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino)

    def release(self) -> None:
        """Release the lock and remove its file."""
        if not self.lost:
            with contextlib.suppress(OSError):  # the file system may have become read-only
                self.path.unlink()
        _descriptors.discard(self.descriptor)
        os.close(self.descriptor)


def lock_descriptor(descriptor: int) -> bool | None:
    """Try to lock an open file: False where another process has locked it, None on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def try_lock(path: Path) -> Lock | None:
    """Acquire the lock with this file, if it is free.

    Raises:
        UserError: its file cannot be created; the folder must exist.
    """
    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            lock = Lock(path, descriptor)
            if lock_descriptor(descriptor) is False:
                os.close(descriptor)
                return None
            if not lock.lost:
                break
            os.close(descriptor)  # another process has released it and removed its file
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})",
            where=path,
            remedy="Choose a folder that can be written",
        ) from None
    _descriptors.add(descriptor)
    _describe(descriptor)
    return lock


@contextlib.contextmanager
def one_at_a_time(path: Path, waiting: Waiting | None = None) -> Iterator[None]:
    """Hold a lock, waiting for other processes that hold it.

    Args:
        path: path of the lock's file, which exists while the lock is held; its folder is created.
        waiting: called with a message before waiting; by default it is printed to stderr.

    Raises:
        UserError: it cannot be created.
    """
    _make_folder(path.parent)
    lock = _wait(path, waiting or _print, f"waiting for another process that writes {path.parent}")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def alone_in(folder: Path, waiting: Waiting | None = None) -> Iterator[None]:
    """Lock the experiment in `folder`, which is created, for this run.

    Under `torchrun` the first process locks; the others wait until it has.

    Args:
        waiting: called with a message before waiting for another run; None raises an error instead.

    Raises:
        UserError: another run trains it, this one already does (a stage that depends on itself), the folder cannot be
            written, or it was removed meanwhile; also replaces an OSError of the body.
    """
    key = threading.get_ident(), os.path.abspath(folder)
    if key in _held:
        raise UserError("it depends on its own training", where=folder, remedy="Change warm_start")
    _make_folder(folder)
    if not is_first_process():
        _follow(folder / LOCK, waiting)
        yield
        return
    line = f"{folder}: another process trains it{{}}; waiting until it has ended"
    lock = _wait(folder / LOCK, waiting, line, folder)
    _held[key] = lock
    try:
        yield
    except OSError as error:
        check_there(folder)
        raise UserError(
            f"cannot be used ({error.strerror or error})",
            where=error.filename or folder,
            remedy="Check the path, its permissions and the free space",
        ) from None
    except Exception:
        check_there(folder)
        raise
    finally:
        del _held[key]
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if it is empty


def is_first_process() -> bool:
    """Whether this is the first process of a launch of `torchrun`, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def check_there(folder: Path) -> None:
    """Check that the folder of an experiment that this thread trains still exists.

    Raises:
        UserError: it was removed, or replaced by another.
    """
    lock = _held.get((threading.get_ident(), os.path.abspath(folder)))
    if lock is not None and lock.lost:
        raise UserError(
            "the experiment was removed while it was trained",
            where=folder,
            remedy="Run the same command to train it from the start",
        )


def is_busy(folder: Path) -> bool:
    """Whether another process trains the experiment in `folder`."""
    path = folder / LOCK
    try:
        with path.open("r+b") as file:
            return lock_descriptor(file.fileno()) is False
    except OSError:
        return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror or error})",
            where=folder,
            remedy="Choose a folder that can be written",
        ) from None


def _wait(path: Path, waiting: Waiting | None, line: str, folder: Path | None = None) -> Lock:
    """Wait for the lock; without `waiting` only for a short time."""
    started, reported = time.monotonic(), False
    while (lock := try_lock(path)) is None:
        if not reported and time.monotonic() - started > PATIENCE:
            holder = _holder(path)
            if waiting is None:
                raise UserError(
                    f"another process trains it{holder}",
                    where=folder or path,
                    remedy="Wait until it has ended, or set name=ANOTHER to train in another folder",
                )
            waiting(line.format(holder) if "{}" in line else f"{line}{holder}")
            reported = True
        time.sleep(_POLL)
        if folder is not None:  # an empty folder is removed with its lock
            _make_folder(folder)
    return lock


def _follow(path: Path, waiting: Waiting | None) -> None:
    """Wait until the first process of the same launch holds the lock, or has already released it."""
    started = time.monotonic()
    while is_busy(path.parent) and _read(path).get("run") != _run():
        if waiting is None and time.monotonic() - started > 10 * PATIENCE:
            raise UserError(f"another process trains it{_holder(path)}", where=path.parent)
        time.sleep(_POLL)


def _describe(descriptor: int) -> None:
    """Write the owner of a lock to its file, for messages of other processes."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "run": _run()}
    with contextlib.suppress(OSError):  # the disk may be full
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)


def _run() -> str:
    """An identifier of the launch of `torchrun` that this process belongs to."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    return " ".join(os.environ.get(name, "") for name in names) if "RANK" in os.environ else str(os.getpid())


def _read(path: Path) -> dict[str, object]:
    try:
        about = read_json(path)
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _holder(path: Path) -> str:
    about = _read(path)
    return f" (process {about['pid']} on {about['host']})" if {"pid", "host"} <= about.keys() else ""


def _print(line: str) -> None:
    print(f"retort: {line}", file=sys.stderr, flush=True)


def _close_in_child() -> None:
    """Close the locks in a forked process, so that it does not hold them after its parent has ended."""
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
