"""OpenAI's Realtime transcription over a WebSocket: `/v1/realtime?intent=transcription`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import uuid
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from retort.audio.resampling import Resampler
from retort.common.errors import UserError
from retort.common.json_reader import parse_json
from retort.decoding.transcript import join_transcripts
from retort.serving.errors import ApiError, internal_error
from retort.serving.formats import logprobs, words
from retort.serving.sessions import RATE, SessionConfig, updated
from retort.serving.state import State
from retort.serving.turns import Samples, Started, Stopped, Turns

SHORTEST = 0.1
"""Seconds of audio that can be committed."""
LONGEST = 300.0
"""Seconds of audio that may wait for a commit."""
PARTIAL = 1.0
"""Seconds of new speech in a turn after which its text so far is recognised."""
WAITING = 8
"""Committed items that wait for recognition before more audio is read."""

log = logging.getLogger(__name__)


class _Item(NamedTuple):
    id: str
    start: float
    samples: Samples


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
            for task in (worker, self._partial):
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
            event = _parsed(text)
            await self._handle(event)
        except ApiError as error:
            event_id = event.get("event_id") if isinstance(event, dict) else None
            await self.send_error(error, event_id if isinstance(event_id, str) else None)

    async def _handle(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "session.update":
            before = self.config
            self.config = updated(before, event.get("session"), self._state)
            if self.config.audio != before.audio:
                self._reset()
            await self._send("session.updated", session=self.config.to_dict())
        elif kind == "input_audio_buffer.append":
            await self._append(_samples(event.get("audio")))
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
        self._turns: Turns | None = None
        if self.config.vad:
            self._turns = Turns(
                rate, self._vad(), self.config.silence_ms / 1000, self.config.prefix_ms / 1000
            )
        self._current = _new_id("item")
        self._stop_partial()

    def _vad(self) -> str:
        vad = self._state.model(self.config.model).options.vad
        return vad if vad != "none" else "energy"

    async def _append(self, samples: Samples) -> None:
        resampled = self._resampler(samples)
        self._seconds += len(samples) / RATE
        if self._turns is not None:
            for event in await asyncio.to_thread(self._turns.add, resampled):
                await self._on_turn(event)
            self._start_partial(self._turns)
            return
        if (self._buffered + len(resampled)) > LONGEST * self._rate:
            raise ApiError(
                400,
                f"More than {LONGEST:g} s wait for a commit. Commit or clear the buffer.",
                code="buffer_full",
            )
        self._buffer.append(resampled)
        self._buffered += len(resampled)

    async def _on_turn(self, event: Started | Stopped) -> None:
        if isinstance(event, Started):
            self._current, self._partial_at = _new_id("item"), event.start
            at = self._origin + event.start / self._rate
            await self._send(
                "input_audio_buffer.speech_started", audio_start_ms=round(at * 1000), item_id=self._current
            )
            return
        at = self._origin + (event.start + len(event.samples)) / self._rate
        await self._send(
            "input_audio_buffer.speech_stopped", audio_end_ms=round(at * 1000), item_id=self._current
        )
        await self._commit(event.samples, self._origin + event.start / self._rate)

    async def _commit_by_client(self) -> None:
        rest = self._resampler.finish()
        self._resampler = Resampler(RATE, self._rate)
        if self._turns is not None:
            for event in await asyncio.to_thread(self._turns.add, rest):
                await self._on_turn(event)
            taken = self._turns.take()
            samples, start = taken.samples, self._origin + taken.start / self._rate
        else:
            samples = np.concatenate([*self._buffer, rest])
            start = self._seconds - len(samples) / self._rate
        if len(samples) < SHORTEST * self._rate:
            milliseconds = 1000 * len(samples) / self._rate
            raise ApiError(
                400,
                f"The buffer has {milliseconds:.0f} ms of audio. Append at least {1000 * SHORTEST:.0f} ms before a commit.",
                code="input_audio_buffer_commit_empty",
            )
        self._buffer, self._buffered = [], 0
        await self._commit(samples, start)

    async def _commit(self, samples: Samples, start: float) -> None:
        self._stop_partial()
        item, self._current = self._current, _new_id("item")
        await self._send("input_audio_buffer.committed", previous_item_id=self._previous, item_id=item)
        content = [{"type": "input_audio", "transcript": None}]
        added = {"id": item, "type": "message", "role": "user", "status": "completed", "content": content}
        await self._send("conversation.item.added", previous_item_id=self._previous, item=added)
        self._previous = item
        await self._items.put(_Item(item, start, samples))

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
        model = self._state.model(self.config.model)
        recording = model.recording([item.samples], self.config.keywords)
        kind = "conversation.item.input_audio_transcription"
        found = []
        sent = model.separator.join(self._sent.pop(item.id, []))
        so_far = ""
        async for piece in recording.pieces():
            found.append(piece.transcript)
            so_far = join_transcripts(found, model.separator).text
            # A partial text that turned out differently is only corrected by the completed one.
            if so_far.startswith(sent) and len(so_far) > len(sent):
                delta = so_far[len(sent) :]
                sent = so_far
                await self._send(f"{kind}.delta", item_id=item.id, content_index=0, delta=delta)
        transcript = join_transcripts(found, model.separator)
        extra: dict[str, Any] = {
            "words": words(transcript.words, item.start),
            "no_speech_prob": transcript.no_speech,
        }
        if self.config.logprobs:
            extra["logprobs"] = logprobs(transcript.tokens)
        usage = {"type": "duration", "seconds": round(recording.duration, 3)}
        await self._send(
            f"{kind}.completed", item_id=item.id, content_index=0, transcript=so_far, usage=usage, **extra
        )

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
        kind = "conversation.item.input_audio_transcription.delta"
        await self._send(kind, item_id=item, content_index=0, delta=delta)

    def _stop_partial(self) -> None:
        if self._partial is not None:
            self._partial.cancel()
        self._partial, self._draft = None, []

    async def _send(self, kind: str, **content: Any) -> None:
        await self._socket.send_json({"type": kind, "event_id": _new_id("event"), **content})


def _common(first: list[str], second: list[str]) -> list[str]:
    """The words that two texts have in common from their start."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second))
    return [word for word, _ in same]


def _parsed(text: str | None) -> dict[str, Any]:
    if text is None:
        raise ApiError(400, "The message is binary. Send events as JSON text.", code="invalid_event")
    try:
        event = parse_json(text)
    except ValueError:
        raise ApiError(400, "The message is not JSON.", code="invalid_event") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ApiError(
            400, "The message is not an event: it has no type.", param="type", code="invalid_event"
        )
    return event


def _samples(audio: object) -> Samples:
    """Base64 of PCM16 (little endian, 24 kHz, one channel) as `(n,)` float32."""
    if not isinstance(audio, str):
        raise ApiError(
            400, "The event has no audio. Send base64 of PCM16.", param="audio", code="invalid_audio"
        )
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "The audio is not valid base64.", param="audio", code="invalid_audio") from None
    if len(data) % 2:
        message = "The audio has an odd number of bytes. Send samples of 16 bit."
        raise ApiError(400, message, param="audio", code="invalid_audio")
    return (np.frombuffer(data, "<i2") / np.float32(32768)).astype(np.float32)


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"
