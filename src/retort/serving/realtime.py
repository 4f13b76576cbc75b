"""OpenAI's Realtime transcription over a WebSocket: `/v1/realtime?intent=transcription`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from retort.audio.resampling import Resampler
from retort.common.errors import UserError
from retort.decoding.transcript import Transcript, join_transcripts
from retort.serving.errors import ApiError, internal_error
from retort.serving.events import event_samples, new_id, parsed
from retort.serving.formats import logprobs, words
from retort.serving.live import LiveStream, StreamWorker
from retort.serving.sessions import RATE, SessionConfig, updated
from retort.serving.state import State
from retort.serving.turns import Event, Samples, Spoken, Started, Turns

DELTA = "conversation.item.input_audio_transcription.delta"
SHORTEST = 0.1
"""Seconds of audio that can be committed."""
LONGEST = 300.0
"""Seconds of audio that may wait for a commit; longer turns of a stream are committed."""
PARTIAL = 1.0
"""Seconds of new speech in a turn after which its text so far is recognised."""
SHORT = 0.5
"""Seconds of audio that are searched for turns between two events of the loop; more are searched in a thread."""
WAITING = 8
"""Committed items that wait for recognition before more audio is read."""

log = logging.getLogger(__name__)


class _Stream(NamedTuple):
    """The audio of an item that is recognised while it arrives, and the task that sends its text."""

    live: LiveStream
    task: asyncio.Task[str]


class _Item(NamedTuple):
    id: str
    start: float
    audio: Samples | _Stream


async def realtime(socket: WebSocket) -> None:
    """The endpoint."""
    state: State = socket.app.state.retort
    await socket.accept()
    session = Session(socket, state)
    if state.sockets >= state.limits.sockets:
        await session.send_error(
            ApiError(429, "The server has too many open sessions. Try again later.", code="queue_full")
        )
        await socket.close(1013)
        return
    state.sockets += 1
    try:
        await session.run()
    except WebSocketDisconnect:
        state.metrics.count("retort_sockets_closed_total", "Realtime sessions that were closed.")
    except TimeoutError:
        message = f"Nothing was sent for {state.limits.idle:g} s."
        await session.send_error(ApiError(408, message, code="idle_timeout"))
        await socket.close(1000)
    except RuntimeError:  # the client vanished while an event was sent
        log.debug("a session ended", exc_info=True)
    finally:
        state.sockets -= 1


class Session:
    """One connection: the audio buffer, the turns, and the items that are recognised in order."""

    def __init__(self, socket: WebSocket, state: State) -> None:
        self._socket, self._state = socket, state
        self.config = SessionConfig()
        self._items: asyncio.Queue[_Item] = asyncio.Queue(WAITING)
        self._previous: str | None = None
        self._current = ""
        self._partial: asyncio.Task[None] | None = None
        self._partial_at = 0
        self._draft: list[str] = []
        self._sent: dict[str, list[str]] = {}
        self._seconds = 0.0
        self._stream: _Stream | None = None
        self._unfinished: set[_Stream] = set()

    async def run(self) -> None:
        """Serve the connection until the client closes it.

        Raises:
            WebSocketDisconnect: the client closed it or vanished.
            TimeoutError: no message arrived in time.
        """
        query = self._socket.query_params
        if query.get("intent", "transcription") != "transcription":
            await self.send_error(
                ApiError(400, "This server has transcription sessions only.", param="intent")
            )
            await self._socket.close(1008)
            return
        try:
            model = self._state.model(query.get("model", "") or next(iter(self._state.models.by_name)))
        except ApiError as error:
            await self.send_error(error)
            await self._socket.close(1008)
            return
        self.config = SessionConfig(model=model.name)
        self._reset()
        await self._send("session.created", session=self.config.to_dict())
        worker = asyncio.ensure_future(self._recognise_items())
        try:
            while True:
                async with asyncio.timeout(self._state.limits.idle):
                    message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code", 1005))
                await self._answer(message.get("text"))
        finally:
            for each in self._unfinished:
                each.live.close()
            for task in (worker, self._partial, *(each.task for each in self._unfinished)):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task

    async def send_error(self, error: ApiError, event_id: str | None = None) -> None:
        """Send an error; the session goes on."""
        await self._send("error", error={**error.content(), "event_id": event_id})

    async def _answer(self, text: str | None) -> None:
        """Answer one message; whatever is wrong with it is one error event."""
        event: Any = None
        try:
            event = parsed(text)
            await self._handle(event)
        except ApiError as error:
            event_id = event.get("event_id") if isinstance(event, dict) else None
            await self.send_error(error, event_id if isinstance(event_id, str) else None)

    async def _handle(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "session.update":
            before = self.config
            self.config = updated(before, event.get("session"), self._state)
            if self.config.audio != before.audio or self._worker() is not self._streams:
                self._reset()
            await self._send("session.updated", session=self.config.to_dict())
        elif kind == "input_audio_buffer.append":
            await self._append(event_samples(event.get("audio")))
        elif kind == "input_audio_buffer.commit":
            await self._commit_by_client()
        elif kind == "input_audio_buffer.clear":
            self._reset()
            await self._send("input_audio_buffer.cleared")
        else:
            raise ApiError(
                400, f"There is no event of type '{str(kind)[:100]}'.", param="type", code="unknown_event"
            )

    def _reset(self) -> None:
        """Discard the audio that is not committed; times go on."""
        rate = self._state.model(self.config.model).sampling_rate
        self._rate = rate
        self._resampler = Resampler(RATE, rate)
        self._buffer: list[Samples] = []
        self._buffered = 0
        self._origin = self._seconds
        self._streams = self._worker()
        self._turns: Turns | None = None
        if self.config.vad:
            self._turns = Turns(
                rate,
                self._vad(),
                self.config.silence_ms / 1000,
                self.config.prefix_ms / 1000,
                streamed=self._streams is not None,
            )
        self._current = new_id("item")
        self._stop_partial()
        if self._stream is not None:
            self._stream.live.close()
            self._stream.task.cancel()
            self._unfinished.discard(self._stream)
            self._stream = None

    def _worker(self) -> StreamWorker | None:
        """The streams of the model, if it recognises audio while it arrives; hotwords need a beam search."""
        return None if self.config.keywords else self._state.model(self.config.model).live

    def _vad(self) -> str:
        vad = self._state.model(self.config.model).options.vad
        return vad if vad != "none" else "energy"

    async def _append(self, samples: Samples) -> None:
        resampled = self._resampler(samples)
        self._seconds += len(samples) / RATE
        if self._turns is not None:
            for event in await self._found(self._turns, resampled):
                await self._on_turn(event)
            if self._streams is None:
                self._start_partial(self._turns)
            elif self._stream is not None and self._stream.live.seconds > LONGEST:
                await self._on_turn(self._turns.take())
            return
        if (self._buffered + len(resampled)) > LONGEST * self._rate:
            raise ApiError(
                400,
                f"More than {LONGEST:g} s wait for a commit. Commit or clear the buffer.",
                code="buffer_full",
            )
        self._buffered += len(resampled)
        if self._streams is None:
            self._buffer.append(resampled)
        else:
            await self._feed(self._streams, resampled)

    async def _found(self, turns: Turns, samples: Samples) -> list[Event]:
        """What happened in the next samples. A thread costs more than the energy detector does in a short piece."""
        if self._vad() == "energy" and len(samples) <= SHORT * self._rate:
            return turns.add(samples)
        return await asyncio.to_thread(turns.add, samples)

    async def _feed(self, streams: StreamWorker, samples: Samples) -> None:
        """Add samples to the stream of the current item."""
        if self._stream is None:
            live = streams.open()
            self._stream = _Stream(live, asyncio.ensure_future(self._send_texts(self._current, live)))
            self._unfinished.add(self._stream)
        await self._stream.live.add(samples)

    async def _send_texts(self, item: str, live: LiveStream) -> str:
        """Send the text of a stream as it grows; returns what was sent."""
        sent = ""
        async for text in live.texts():
            sent = await self._send_rest(item, text, sent)
        return sent

    async def _send_rest(self, item: str, text: str, sent: str) -> str:
        """Send what a text has more than was sent before, which is returned.

        A text that turned out differently is only corrected by the completed one.
        """
        if not text.startswith(sent) or len(text) <= len(sent):
            return sent
        await self._send(DELTA, item_id=item, content_index=0, delta=text[len(sent) :])
        return text

    async def _on_turn(self, event: Event) -> None:
        if isinstance(event, Spoken):
            assert self._streams is not None
            await self._feed(self._streams, event.samples)
            return
        if isinstance(event, Started):
            self._current, self._partial_at = new_id("item"), event.start
            at = self._origin + event.start / self._rate
            await self._send(
                "input_audio_buffer.speech_started", audio_start_ms=round(at * 1000), item_id=self._current
            )
            return
        at = self._origin + event.end / self._rate
        await self._send(
            "input_audio_buffer.speech_stopped", audio_end_ms=round(at * 1000), item_id=self._current
        )
        await self._commit(event.samples, self._origin + event.start / self._rate)

    async def _commit_by_client(self) -> None:
        rest = self._resampler.finish()
        self._resampler = Resampler(RATE, self._rate)
        if self._turns is not None:
            for event in await self._found(self._turns, rest):
                await self._on_turn(event)
            taken = self._turns.take()
            samples, start = taken.samples, self._origin + taken.start / self._rate
            size = taken.end - taken.start
        else:
            samples = np.concatenate([*self._buffer, rest])
            size = self._buffered + len(rest)
            start = self._seconds - size / self._rate
        if size < SHORTEST * self._rate:
            milliseconds = 1000 * size / self._rate
            raise ApiError(
                400,
                f"The buffer has {milliseconds:.0f} ms of audio. Append at least {1000 * SHORTEST:.0f} ms before a commit.",
                code="input_audio_buffer_commit_empty",
            )
        self._buffer, self._buffered = [], 0
        await self._commit(samples, start)

    async def _commit(self, samples: Samples, start: float) -> None:
        """Commit the stream of the current item with these as its last samples, or the samples alone."""
        self._stop_partial()
        audio: Samples | _Stream = samples
        if self._streams is not None:
            await self._feed(self._streams, samples)
            assert self._stream is not None
            audio, self._stream = self._stream, None
            audio.live.end()
        item, self._current = self._current, new_id("item")
        await self._send("input_audio_buffer.committed", previous_item_id=self._previous, item_id=item)
        content = [{"type": "input_audio", "transcript": None}]
        added = {"id": item, "type": "message", "role": "user", "status": "completed", "content": content}
        await self._send("conversation.item.added", previous_item_id=self._previous, item=added)
        self._previous = item
        await self._items.put(_Item(item, start, audio))

    async def _recognise_items(self) -> None:
        while True:
            item = await self._items.get()
            try:
                async with asyncio.timeout(self._state.limits.timeout):
                    await self._complete(item)
            except UserError as error:
                await self._fail(
                    item, ApiError(400, f"The audio cannot be used: {error.what}.", code="invalid_audio")
                )
            except TimeoutError:
                await self._fail(item, ApiError(408, "The recognition took too long.", code="timeout"))
            except (WebSocketDisconnect, RuntimeError):
                return
            except Exception:
                log.exception("an item could not be recognised")
                await self._fail(item, internal_error())

    async def _fail(self, item: _Item, error: ApiError) -> None:
        kind = "conversation.item.input_audio_transcription.failed"
        await self._send(kind, item_id=item.id, content_index=0, error=error.content())

    async def _complete(self, item: _Item) -> None:
        """Recognise an item, or wait for the end of its stream, and send its transcript."""
        if isinstance(item.audio, _Stream):
            live, task = item.audio
            try:
                sent = await task
            finally:
                live.close()
                self._unfinished.discard(item.audio)
            assert live.result is not None
            transcript, seconds = live.result, live.seconds
            await self._send_rest(item.id, transcript.text, sent)
        else:
            transcript, seconds = await self._recognise(item.id, item.audio)
        extra: dict[str, Any] = {
            "words": words(transcript.words, item.start),
            "no_speech_prob": transcript.no_speech,
        }
        if self.config.logprobs:
            extra["logprobs"] = logprobs(transcript.tokens)
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item.id,
            content_index=0,
            transcript=transcript.text,
            usage={"type": "duration", "seconds": round(seconds, 3)},
            **extra,
        )

    async def _recognise(self, item: str, samples: Samples) -> tuple[Transcript, float]:
        """The transcript of samples, whose text is sent segment by segment, and their duration."""
        model = self._state.model(self.config.model)
        recording = model.recording([samples], self.config.keywords)
        found: list[Transcript] = []
        sent = model.separator.join(self._sent.pop(item, []))
        async for piece in recording.pieces():
            found.append(piece.transcript)
            sent = await self._send_rest(item, join_transcripts(found, model.separator).text, sent)
        return join_transcripts(found, model.separator), recording.duration

    def _start_partial(self, turns: Turns) -> None:
        """Recognise the current turn so far, once it has grown by `PARTIAL` seconds and if the model is idle."""
        model = self._state.model(self.config.model)
        busy = (self._partial is not None and not self._partial.done()) or model.worker.waiting > 0
        if turns.start is None or busy or turns.position - self._partial_at < PARTIAL * self._rate:
            return
        self._partial_at = turns.position
        self._partial = asyncio.ensure_future(self._send_partial(self._current, turns.current()))

    async def _send_partial(self, item: str, samples: Samples) -> None:
        """Send the words that two consecutive partial results have in common (local agreement)."""
        model = self._state.model(self.config.model)
        try:
            recording = model.recording([samples], self.config.keywords)
            found = [word.text async for piece in recording.pieces() for word in piece.transcript.words]
        except UserError:
            return
        if item != self._current:
            return
        agreed = _common(found, self._draft)
        self._draft = found
        sent = self._sent.setdefault(item, [])
        if agreed[: len(sent)] != sent or len(agreed) <= len(sent):
            return
        delta = model.separator.join(agreed[len(sent) :])
        delta = (model.separator if sent else "") + delta
        self._sent[item] = agreed
        await self._send(DELTA, item_id=item, content_index=0, delta=delta)

    def _stop_partial(self) -> None:
        if self._partial is not None:
            self._partial.cancel()
        self._partial, self._draft = None, []

    async def _send(self, kind: str, **content: Any) -> None:
        await self._socket.send_json({"type": kind, "event_id": new_id("event"), **content})


def _common(first: list[str], second: list[str]) -> list[str]:
    """The words that two texts have in common from their start."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second))
    return [word for word, _ in same]
