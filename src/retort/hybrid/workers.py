"""The same work on many pieces, over all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from retort.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Processes that were started afresh, not forked, so that threads of this one (torch's, a progress bar's)
    cannot hang them; each uses one thread. With one process the work is done here."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

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
            raise UserError(
                "a process of the alignment was killed",
                remedy="If memory was short, set fewer `processes`; run again, and it goes on where it was",
            ) from None


@contextmanager
def workers(processes: int) -> Iterator[Workers]:
    """Args: processes: 0 for one a core that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = processes or allowed or 1
    if count == 1:
        yield Workers(None)
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the libraries when the processes start
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
