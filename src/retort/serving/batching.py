"""Dynamic batching: one thread per model recognises the segments of all requests in batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from retort.common.errors import UserError
from retort.decoding.options import DecodingOptions
from retort.decoding.segment import SpeechSegment
from retort.serving.limits import Limits
from retort.serving.metrics import SIZES, Metrics

log = logging.getLogger(__name__)


Recognise = Callable[[Sequence[SpeechSegment], DecodingOptions], Sequence[Any]]
"""Results of a batch of segments, in their order; a result may be an exception."""


class _Job(NamedTuple):
    segment: SpeechSegment
    options: DecodingOptions
    result: Future[Any]
    arrived: float


class BatchWorker:
    """A thread that collects segments into batches.

    The oldest segment is always in the next batch, with those of equal options and the most similar durations, so that
    little is padded and no segment waits for ever.

    Args:
        name: name of the model in the metrics.
        recognise: called in the thread, with segments of equal options.
    """

    def __init__(self, name: str, recognise: Recognise, limits: Limits, metrics: Metrics) -> None:
        self.name, self._recognise, self._limits, self._metrics = name, recognise, limits, metrics
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._factor = 0.1
        metrics.gauge(
            "retort_queue_segments", "Segments that wait to be recognised.", lambda: self.waiting, model=name
        )
        self._thread = threading.Thread(target=self._run, name=f"recogniser-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of segments in the queue."""
        return len(self._jobs)

    @property
    def backlog(self) -> float:
        """Estimated seconds until the queue is empty."""
        with self._changed:
            return self._factor * sum(job.segment.duration for job in self._jobs)

    def submit(self, segment: SpeechSegment, options: DecodingOptions) -> Future[Any]:
        """Append a segment to the queue; its result can be cancelled until its batch starts.

        Raises:
            RuntimeError: the worker is closed.
        """
        result: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the worker is closed")
            self._jobs.append(_Job(segment, options, result, time.monotonic()))
            self._changed.notify()
        return result

    def close(self) -> None:
        """Recognise what is in the queue, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            self._work(batch)
            seconds = sum(job.segment.duration for job in batch)
            spent = time.monotonic() - started
            self._factor += 0.2 * (spent / max(seconds, 0.1) - self._factor)
            about = "Segments in a batch."
            self._metrics.observe("retort_batch_segments", about, len(batch), SIZES, model=self.name)
            about = "Seconds of computation of a batch."
            self._metrics.observe("retort_batch_seconds", about, spent, model=self.name)
            about = "Seconds of audio that were recognised."
            self._metrics.count("retort_audio_seconds_total", about, seconds, model=self.name)

    def _take(self) -> list[_Job]:
        """The next batch; empty if the worker is closed and has nothing to do."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.result.cancelled()]
                if not self._jobs:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._jobs[0].arrived + self._limits.batch_wait / 1000 - time.monotonic()
                if left <= 0 or self._closed or self._full():
                    break
                self._changed.wait(left)
            chosen = self._choose()
            taken = {id(job) for job in chosen}
            self._jobs = [job for job in self._jobs if id(job) not in taken]
        return [job for job in chosen if job.result.set_running_or_notify_cancel()] or self._take()

    def _full(self) -> bool:
        enough = sum(job.segment.duration for job in self._jobs) >= self._limits.batch_seconds
        return enough or len(self._jobs) >= self._limits.batch_size

    def _choose(self) -> list[_Job]:
        first = self._jobs[0]
        others = [job for job in self._jobs[1:] if job.options == first.options]
        others.sort(key=lambda job: abs(job.segment.duration - first.segment.duration))
        batch, longest = [first], first.segment.duration
        for job in others:
            longest = max(longest, job.segment.duration)
            if (
                len(batch) == self._limits.batch_size
                or (len(batch) + 1) * longest > self._limits.batch_seconds
            ):
                break
            batch.append(job)
        return batch

    def _work(self, batch: Sequence[_Job]) -> None:
        try:
            results = self._recognise([job.segment for job in batch], batch[0].options)
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, UserError):
                    log.exception("%s: a segment could not be recognised", self.name)
                batch[0].result.set_exception(error)
                return
            for job in batch:  # one segment must not spoil those of other requests
                self._work([job])
            return
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, BaseException):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)
