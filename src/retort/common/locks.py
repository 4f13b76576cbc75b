"""Locks between processes, over files: one that dies, however it dies, leaves them.

They are `flock` locks, so that the kernel, or the server of a network file system, gives them back when their process
has ended. A lock's file is taken away by whoever releases it; who finds another file in its place looks again.
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
"""Of an experiment, in its folder."""
PATIENCE = 1.0
"""Seconds before it is said that a lock is waited for, or that an experiment is another process's."""
_POLL = 0.2
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that have no locks, as NFS without its lock service."""

Waiting = Callable[[str], None]
"""Called once, with a line, before a lock is waited for."""

_descriptors: set[int] = set()
_held: dict[tuple[int, str], Lock] = {}
"""Experiments that threads of this process train."""


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds."""

    path: Path
    descriptor: int

    @property
    def lost(self) -> bool:
        """Whether its file is gone, or another one is in its place: somebody removed the folder."""
        try:
            there, own = os.stat(self.path), os.fstat(self.descriptor)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino)

    def release(self) -> None:
        """Give it back, and take its file away."""
        if not self.lost:
            with contextlib.suppress(OSError):  # a disk that has become read-only
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
    """The lock with this file, if nobody holds it.

    Raises:
        UserError: its file cannot be made; the folder must exist.
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
            os.close(descriptor)  # of another process, which has released it and taken its file away
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
    """Wait until no other process is within the same lock.

    Args:
        path: of the lock's file, which is there while the lock is held; its folder is made.
        waiting: called with a line when it has to wait; by default that goes to stderr.

    Raises:
        UserError: it cannot be made.
    """
    _make_folder(path.parent)
    lock = _wait(path, waiting or _say, f"waiting for another process that makes {path.parent}")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def alone_in(folder: Path, waiting: Waiting | None = None) -> Iterator[None]:
    """Be the only run that trains the experiment in `folder`, which is made.

    Under `torchrun` the first process locks; the others wait until it has.

    Args:
        waiting: called with a line before another run is waited for; None: another run is an error.

    Raises:
        UserError: another run trains it, this one does already (a stage that needs itself), the folder cannot be
            written, or it was removed meanwhile, whatever that made fail; also in place of an OSError from within.
    """
    key = threading.get_ident(), os.path.abspath(folder)
    if key in _held:
        raise UserError("it needs itself to be trained first", where=folder, remedy="Change warm_start")
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
            remedy="See what is in its place, whether it may be written and whether the disk is full",
        ) from None
    except Exception:
        check_there(folder)
        raise
    finally:
        del _held[key]
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing was made


def is_first_process() -> bool:
    """Whether this is the first process of a launch of `torchrun`, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def check_there(folder: Path) -> None:
    """See whether an experiment that this thread trains still has its folder.

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
    """The lock, when it is free; without `waiting` only if that is soon."""
    started, said = time.monotonic(), False
    while (lock := try_lock(path)) is None:
        if not said and time.monotonic() - started > PATIENCE:
            holder = _holder(path)
            if waiting is None:
                raise UserError(
                    f"another process trains it{holder}",
                    where=folder or path,
                    remedy="Wait until it has ended, or give name=ANOTHER to train beside it",
                )
            waiting(line.format(holder) if "{}" in line else f"{line}{holder}")
            said = True
        time.sleep(_POLL)
        if folder is not None:  # whoever releases the lock of an empty folder takes that away, too
            _make_folder(folder)
    return lock


def _follow(path: Path, waiting: Waiting | None) -> None:
    """Wait until the first process of the same launch has locked, or nobody has: then it was there and is done."""
    started = time.monotonic()
    while is_busy(path.parent) and _read(path).get("run") != _run():
        if waiting is None and time.monotonic() - started > 10 * PATIENCE:
            raise UserError(f"another process trains it{_holder(path)}", where=path.parent)
        time.sleep(_POLL)


def _describe(descriptor: int) -> None:
    """Write down who holds a lock, for others to say."""
    about = {"pid": os.getpid(), "host": socket.gethostname(), "run": _run()}
    with contextlib.suppress(OSError):  # the disk may be full
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)


def _run() -> str:
    """The same for the processes of one launch of `torchrun`, and for no others."""
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


def _say(line: str) -> None:
    print(f"retort: {line}", file=sys.stderr, flush=True)


def _close_in_child() -> None:
    """A process that was forked must not keep the locks of its parent when that has ended."""
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
