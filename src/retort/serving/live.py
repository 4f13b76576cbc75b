"""Streams of all sessions: one thread per model computes the chunks of all open streams together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.decoding.transcript import Transcript
from retort.serving.metrics import SIZES, Metrics
from retort.streaming.utterances import Partial, Streams, joined

Samples = NDArray[np.float32]
STEP = 1.0
"""Seconds of audio that are taken from each stream at a time, so that a stream that is far behind delays no other."""
REST = 0.125
"""Part of a chunk that passes from the beginning of one step to that of the next, so that the chunks of several streams are
computed together."""
AHEAD = 10.0
"""Seconds of audio that may wait in a stream before its session reads no more."""

log = logging.getLogger(__name__)


class LiveStream:
    """One stream, for the coroutines of a session; made by :meth:`StreamWorker.open`.

    Attributes:
        text: text so far.
        result: the transcript, once the stream has ended.
        seconds: duration of the audio so far.
    """

    def __init__(self, worker: StreamWorker) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._done: Transcript | None = None  # of the utterances that have ended
        self._partial: Partial | None = None  # the last one
        self._error: BaseException | None = None
        self.text, self.seconds = "", 0.0
        self.result: Transcript | None = None
        # Of the worker, under its lock:
        self.number: int | None = None
        self.pieces: deque[Samples] = deque()
        self.pending = 0
        self.ending = self.closed = self.full = False

    async def add(self, samples: Samples) -> None:
        """Add samples `(n,)` at the model's sampling rate; waits while many of the stream are not yet recognised."""
        self.seconds += len(samples) / self._worker.rate
        if self._worker.add(self, samples):
            self._room.clear()
        while not self._room.is_set() and self.result is None and self._error is None:
            await self._room.wait()

    def end(self) -> None:
        """There are no more samples."""
        self._worker.end(self)

    def close(self) -> None:
        """Discard the stream, whether it has ended or not."""
        self._worker.close_stream(self)

    async def texts(self) -> AsyncIterator[str]:
        """The text whenever it has grown; ends with the stream, after which :attr:`result` is there.

        Raises:
            Exception: the error with which the stream failed.
        """
        sent = ""
        while self.result is None:
            await self._changed.wait()
            self._changed.clear()
            if self._error is not None:
                raise self._error
            if self.text != sent:
                sent = self.text
                yield sent

    def deliver(self, partial: Partial, last: bool, room: bool) -> None:
        """Take a result; called by the thread of the worker.

        Args:
            last: whether it is that of the end of the stream.
            room: whether more samples may be added again.
        """
        transcriber = self._worker.streams.transcriber
        if partial is self._partial and not last:
            if room:
                self._call(self._update, None, None, room)
            return
        self._partial = partial
        if partial.finished or self._done is None:
            before = [] if self._done is None else [self._done]
            self._done = joined([*before, *partial.finished], transcriber)
        current = Transcript(partial.text, partial.words, [])
        # The last character may be incomplete: some of its bytes are in the next token.
        text = joined([self._done, current], transcriber).text.rstrip("\ufffd")
        self._call(self._update, text, transcriber.calibration.words(self._done) if last else None, room)

    def fail(self, error: BaseException) -> None:
        """End with an error; called by the thread of the worker."""
        self._call(self._fail, error)

    def _call(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the server has stopped
            log.debug("a stream ended with its server", exc_info=True)

    def _update(self, text: str | None, result: Transcript | None, room: bool) -> None:
        if text is not None:
            self.text = text
        if result is not None:
            self.result = result
        if room or result is not None:
            self._room.set()
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._room.set()
        self._changed.set()


class StreamWorker:
    """A thread with the streams of a model.

    Each step takes up to `STEP` seconds of the waiting audio of every stream and computes them together. Steps begin at
    least `REST` chunks apart, and the longer a step takes, the larger the next batch is.

    Args:
        name: name of the model in the metrics.
        streams: without any stream.
    """

    def __init__(self, name: str, streams: Streams[Any, Any], metrics: Metrics) -> None:
        self.name, self.streams, self._metrics = name, streams, metrics
        self.rate = streams.transcriber.sampling_rate
        self._open: list[LiveStream] = []
        self._changed = threading.Condition()
        self._closed = False
        metrics.gauge(
            "retort_streams_active", "Streams that are being recognised.", lambda: self.active, model=name
        )
        metrics.gauge(
            "retort_streams_waiting_seconds",
            "Largest duration of audio that waits in a stream.",
            lambda: max((each.pending for each in list(self._open)), default=0) / self.rate,
            model=name,
        )
        self._thread = threading.Thread(target=self._run, name=f"streams-{name}", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Number of streams that are being recognised."""
        return len(self._open)

    def open(self) -> LiveStream:
        """A new stream; to be called in the thread of the event loop.

        Raises:
            RuntimeError: the worker is closed.
        """
        live = LiveStream(self)
        with self._changed:
            if self._closed:
                raise RuntimeError("the worker is closed")
            self._open.append(live)
        return live

    def add(self, live: LiveStream, samples: Samples) -> bool:
        """Add samples to a stream; returns whether so many wait that no more should be added."""
        with self._changed:
            if not live.closed:
                live.pieces.append(samples)
                live.pending += len(samples)
                live.full = live.full or live.pending > AHEAD * self.rate
                self._changed.notify()
            return live.full

    def end(self, live: LiveStream) -> None:
        """No samples follow in a stream."""
        with self._changed:
            live.ending = True
            self._changed.notify()

    def close_stream(self, live: LiveStream) -> None:
        """Discard a stream."""
        with self._changed:
            live.closed = True
            live.pieces.clear()
            live.pending = 0
            self._changed.notify()

    def close(self) -> None:
        """Recognise what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            dropped, work = taken
            begun = time.monotonic()
            for live in dropped:
                if live.number is not None:
                    self.streams.drop(live.number)
                    live.number = None
            if work:
                self._step(work)
                time.sleep(max(0.0, begun + REST * self.streams.chunk_seconds - time.monotonic()))

    def _take(self) -> tuple[list[LiveStream], list[tuple[LiveStream, Samples, bool]]] | None:
        """Streams to be discarded, and those with work: their next samples, and whether these are the last ones."""
        with self._changed:
            while True:
                dropped = [live for live in self._open if live.closed]
                self._open = [live for live in self._open if not live.closed]
                work = [self._next(live) for live in self._open if live.pieces or live.ending]
                if dropped or work:
                    return dropped, work
                if self._closed:
                    return None
                self._changed.wait()

    def _next(self, live: LiveStream) -> tuple[LiveStream, Samples, bool]:
        parts: list[Samples] = []
        room = round(STEP * self.rate)
        while live.pieces and room:
            piece = live.pieces.popleft()
            parts.append(piece[:room])
            if len(piece) > room:
                live.pieces.appendleft(piece[room:])
            room -= len(parts[-1])
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        live.pending -= len(samples)
        last = live.ending and not live.pieces
        if last:
            live.closed = True  # it is discarded after this step
        return live, samples, last

    def _step(self, work: Sequence[tuple[LiveStream, Samples, bool]]) -> None:
        started = time.monotonic()
        try:
            for live, _, _ in work:
                if live.number is None:
                    live.number = self.streams.open()
            pieces = {live.number: samples for live, samples, _ in work if live.number is not None}
            ending = [live.number for live, _, last in work if last and live.number is not None]
            found = self.streams.advance(pieces, ending)
        except Exception as error:
            log.exception("%s: %d streams could not be recognised", self.name, len(work))
            for live, _, _ in work:
                live.fail(error)
                self.close_stream(live)
            return
        for live, _, last in work:
            assert live.number is not None
            with self._changed:
                room = live.full and live.pending <= AHEAD * self.rate / 2
                live.full = live.full and not room
            live.deliver(found[live.number], last, room)
        seconds = sum(len(samples) for _, samples, _ in work) / self.rate
        spent = time.monotonic() - started
        about = "Streams in a step."
        self._metrics.observe("retort_stream_step_streams", about, len(work), SIZES, model=self.name)
        about = "Seconds of computation of a step of all streams."
        self._metrics.observe("retort_stream_step_seconds", about, spent, model=self.name)
        about = "Seconds of audio that were recognised in streams."
        self._metrics.count("retort_stream_audio_seconds_total", about, seconds, model=self.name)
