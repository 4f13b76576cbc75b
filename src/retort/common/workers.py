"""A pool of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from retort.common.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Spawned (not forked) processes, so that threads of the parent (torch, progress bar) cannot
    block them; each uses one thread. With one process the work is done in this process."""

    def __init__(self, pool: ProcessPoolExecutor | None, of: str = "", remedy: str = "") -> None:
        self._pool, self._of, self._remedy = pool, of, remedy

    def map(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """Results in the order of the jobs.

        Raises:
            UserError: a process was killed.
        """
        if self._pool is None:
            yield from map(work, jobs)
            return
        try:
            yield from self._pool.map(work, jobs)
        except BrokenProcessPool:
            raise UserError(f"a process of {self._of} was killed", remedy=self._remedy) from None


def cores() -> int:
    """Number of cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1


@contextmanager
def workers(processes: int, of: str, remedy: str) -> Iterator[Workers]:
    """A pool that ends with the block, or with this process.

    Args:
        processes: number of processes; 0 for one per core.
        of: description of the work, and
        remedy: advice, for the error when a process was killed.
    """
    count = processes or cores()
    if count == 1:
        yield Workers(None)
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the libraries when the processes start
    pool = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        yield Workers(pool, of, remedy)
    except BaseException:  # their current jobs are not needed and may take minutes
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Ignore Ctrl-C, and end when the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
