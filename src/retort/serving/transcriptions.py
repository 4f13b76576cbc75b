"""`POST /v1/audio/transcriptions`: a file to text, as OpenAI's endpoint."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from retort.audio.files import AudioReader, open_audio
from retort.common.errors import UserError
from retort.decoding.transcript import join_transcripts
from retort.serving.errors import ApiError, internal_error
from retort.serving.formats import logprobs, respond, words
from retort.serving.models import Piece, Recording, ServedModel
from retort.serving.state import State
from retort.serving.uploads import Wanted, on_disk, read_fields, read_form

log = logging.getLogger(__name__)

T = TypeVar("T")


async def transcriptions(request: Request) -> Response:
    """The endpoint.

    Raises:
        ApiError: the request cannot be answered.
    """
    state: State = request.app.state.retort
    async with AsyncExitStack() as stack:
        stack.enter_context(state.admitted())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + state.limits.timeout
        try:
            async with asyncio.timeout_at(deadline):
                form = await read_form(request)
        except TimeoutError:
            raise _timeout(state) from None
        except ClientDisconnect:
            return _vanished(state)
        stack.push_async_callback(form.close)
        wanted = read_fields(form)
        model = state.model(wanted.model)
        path = stack.enter_context(on_disk(wanted.file))
        work = (
            _streamed(stack, wanted, model, path, state)
            if wanted.stream
            else _whole(wanted, model, path, state)
        )
        gone = asyncio.ensure_future(_gone(request))
        try:
            return await _first(work, gone, deadline)
        except TimeoutError:
            raise _timeout(state) from None
        except ClientDisconnect:
            return _vanished(state)
        finally:
            gone.cancel()


async def _whole(wanted: Wanted, model: ServedModel, path: Path, state: State) -> Response:
    try:
        recording = await asyncio.to_thread(_open, wanted, model, path, state)
        pieces = [piece async for piece in recording.pieces()]
    except UserError as error:
        raise _unreadable(error) from None
    return respond(wanted, model, pieces, recording.duration)


async def _streamed(
    stack: AsyncExitStack, wanted: Wanted, model: ServedModel, path: Path, state: State
) -> Response:
    """A response of server-sent events; it begins when the first segment is recognised, so that errors are plain."""
    try:
        recording = await asyncio.to_thread(_open, wanted, model, path, state)
        pieces = recording.pieces()
        first = await anext(pieces, None)
    except UserError as error:
        raise _unreadable(error) from None
    kept = stack.pop_all()  # the file and the place in the queue are kept until the last event

    async def events() -> AsyncIterator[bytes]:
        async with kept:
            try:
                async with asyncio.timeout(state.limits.timeout):
                    async for event in _events(wanted, model, recording, first, pieces):
                        yield _event(event)
            except UserError as error:
                yield _event({"error": _unreadable(error).content()})
            except TimeoutError:
                yield _event({"error": _timeout(state).content()})
            except Exception:
                log.exception("a stream failed")
                yield _event({"error": internal_error().content()})

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _events(
    wanted: Wanted, model: ServedModel, recording: Recording, first: Piece | None, rest: AsyncIterator[Piece]
) -> AsyncIterator[dict[str, Any]]:
    found: list[Piece] = []
    piece = first
    while piece is not None:
        if piece.transcript.text:
            before = model.separator if any(each.transcript.text for each in found) else ""
            delta: dict[str, Any] = {"type": "transcript.text.delta", "delta": before + piece.transcript.text}
            if wanted.logprobs:
                delta["logprobs"] = logprobs(piece.transcript.tokens)
            if "word" in wanted.granularities:  # not in OpenAI's schema; the page shows them
                delta["words"] = words(piece.transcript.words)
            yield delta
        found.append(piece)
        piece = await anext(rest, None)
    transcript = join_transcripts([each.transcript for each in found], model.separator)
    usage = {"type": "duration", "seconds": round(recording.duration, 3)}
    done: dict[str, Any] = {"type": "transcript.text.done", "text": transcript.text, "usage": usage}
    if wanted.logprobs:
        done["logprobs"] = logprobs(transcript.tokens)
    yield done


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def _open(wanted: Wanted, model: ServedModel, path: Path, state: State) -> Recording:
    """Open the file with the readers of the project, by its content and not by its name or stated type.

    Raises:
        ApiError: it is too long.
        UserError: it is not audio.
    """
    most = state.limits.seconds
    # A header may state less than there is: the reader's own limit, of one second more, then ends the reading.
    reader = open_audio(path, model.sampling_rate, maximum_hours=1e9)
    seconds = reader.info.samples / reader.info.sampling_rate
    if seconds > most:
        message = f"The audio has {seconds:.0f} s, the limit is {most:g} s. Send it in parts."
        raise ApiError(413, message, param="file", code="audio_too_long")
    return model.recording(_bounded(reader, most), wanted.keywords)


def _bounded(reader: AudioReader, most: float) -> Any:
    samples = 0
    for block in reader.blocks():
        samples += len(block)
        if samples > (most + 1) * reader.sampling_rate:
            raise UserError(f"the audio is longer than its header states, and than {most:g} s")
        yield block


async def _first(work: Coroutine[Any, Any, T], gone: asyncio.Future[None], deadline: float) -> T:
    """The result of `work`, unless the client disconnects or the time is up.

    Raises:
        ClientDisconnect, TimeoutError: the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    left = deadline - asyncio.get_running_loop().time()
    either: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(either, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect if gone.done() else TimeoutError
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unreadable(error: UserError) -> ApiError:
    what = error.what.rstrip(".")
    convert = "Convert" in error.remedy or not error.remedy
    remedy = (
        "Send flac, wav, mp3, ogg, or, where the server has PyAV, m4a, mp4 or webm"
        if convert
        else error.remedy
    )
    return ApiError(
        400, f"The file cannot be used: {what}. {remedy.rstrip('.')}.", param="file", code="invalid_audio"
    )


def _timeout(state: State) -> ApiError:
    return ApiError(
        408, f"The request took more than {state.limits.timeout:g} s. Send a shorter file.", code="timeout"
    )


def _vanished(state: State) -> Response:
    state.metrics.count("retort_disconnects_total", "Requests whose client disconnected before the answer.")
    return Response(status_code=499)
