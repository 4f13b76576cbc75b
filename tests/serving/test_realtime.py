"""The Realtime socket, with the real client and with garbage."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from retort.audio.resampling import resample
from retort.decoding.recogniser import Recogniser
from retort.serving.limits import Limits
from retort.serving.server import Server

Spoken = Callable[..., np.ndarray]
Serving = Callable[..., Any]
KIND = "conversation.item.input_audio_transcription"

TURN = (
    *("input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"),
    *("input_audio_buffer.committed", f"{KIND}.completed"),
)


def pcm(samples: np.ndarray) -> str:
    """`samples (N,)` at 24 kHz as base64 of PCM16."""
    return base64.b64encode(np.round(samples * 32767).astype("<i2").tobytes()).decode()


def recognised(samples: np.ndarray) -> np.ndarray:
    """What the server gets of :func:`pcm`, at 16 kHz."""
    wave = (np.round(samples * 32767).astype(np.int16) / np.float32(32768)).astype(np.float32)
    return resample(wave, 24000, 16000)


def wait_for(events: Iterator[Any], *kinds: str) -> list[Any]:
    """The next event of each kind, in this order; errors end the test."""
    found = []
    for kind in kinds:
        for event in events:
            assert event.type != "error", event
            if event.type == kind:
                found.append(event)
                break
    return found


def update(turns: dict[str, Any] | None, **transcription: Any) -> dict[str, Any]:
    source = {
        "format": {"type": "audio/pcm", "rate": 24000},
        "turn_detection": turns,
        "transcription": {"model": "tones", **transcription},
    }
    include = ["item.input_audio_transcription.logprobs"]
    return {"type": "transcription", "audio": {"input": source}, "include": include}


def test_committed_by_the_client(client: Any, spoken: Spoken, recogniser: Recogniser) -> None:
    waves = [resample(spoken(seed), 16000, 24000) for seed in (1, 2)]
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        events = iter(connection)
        (created,) = wait_for(events, "session.created")
        assert created.session.type == "transcription"
        connection.session.update(session=update(None))
        (updated,) = wait_for(events, "session.updated")
        assert updated.session.audio.input.turn_detection is None
        before = None
        for wave in waves:
            for start in range(0, len(wave), 4001):
                connection.input_audio_buffer.append(audio=pcm(wave[start : start + 4001]))
            connection.input_audio_buffer.commit()
            committed, delta, done = wait_for(
                events, "input_audio_buffer.committed", f"{KIND}.delta", f"{KIND}.completed"
            )
            expected = recogniser.transcribe_samples(recognised(wave))
            assert committed.previous_item_id == before
            assert committed.item_id == done.item_id == delta.item_id
            assert done.transcript == expected.text
            assert delta.delta == expected.text
            assert done.usage.seconds == pytest.approx(len(wave) / 24000, abs=1e-3)
            assert len(done.logprobs) == len(expected.tokens)
            assert [each["word"] for each in done.words] == [each.text for each in expected.words]
            before = committed.item_id
        first = waves[0].size / 24000
        assert done.words[0]["start"] == pytest.approx(first + expected.words[0].start, abs=2e-3)


def test_turns_of_the_server(client: Any, spoken: Spoken) -> None:
    draw = np.random.default_rng(0)

    def quiet(seconds: float) -> np.ndarray:
        return (1e-3 * draw.standard_normal(round(seconds * 24000))).astype(np.float32)

    first, second = (resample(spoken(seed, 8), 16000, 24000) for seed in (3, 4))
    wave = np.concatenate([quiet(1.0), first, quiet(1.2), second, quiet(1.2)])
    with client.realtime.connect(model="second", extra_query={"intent": "transcription"}) as connection:
        events = iter(connection)
        turns = {"type": "server_vad", "silence_duration_ms": 600, "prefix_padding_ms": 200}
        connection.session.update(session=update(turns))
        wait_for(events, "session.updated")
        for start in range(0, len(wave), 2400):
            connection.input_audio_buffer.append(audio=pcm(wave[start : start + 2400]))
        found: dict[str, list[Any]] = {}
        while len(found.get(f"{KIND}.completed", [])) < 2:  # the first may come after the start of the second
            event = next(events)
            assert event.type not in ("error", f"{KIND}.failed")
            found.setdefault(event.type, []).append(event)
    items = [[each.item_id for each in found[kind]] for kind in TURN]
    assert items == [items[0]] * 4
    times = []
    for started, stopped, _, done in zip(*(found[kind] for kind in TURN)):
        assert done.transcript
        times += [started.audio_start_ms / 1000, stopped.audio_end_ms / 1000]
        assert times[-2] <= done.words[0]["start"] < done.words[-1]["end"] <= times[-1]
    ends = [1.0 + first.size / 24000, 2.2 + (first.size + second.size) / 24000]
    assert times[0] == pytest.approx(1.05, abs=0.25)  # 0.25 s of noise, less the padding
    assert times[1] == pytest.approx(ends[0] - 0.25 + 0.6, abs=0.3)
    assert times[3] == pytest.approx(ends[1] - 0.25 + 0.6, abs=0.3)


def test_text_before_the_end_of_a_turn(client: Any, spoken: Spoken) -> None:
    wave = resample(spoken(5, 25), 16000, 24000)
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        events = iter(connection)
        wait_for(events, "session.created")
        deltas = ""
        for start in range(0, len(wave), 12000):
            connection.input_audio_buffer.append(audio=pcm(wave[start : start + 12000]))
            time.sleep(0.1)
        connection.input_audio_buffer.commit()
        committed = False
        early = ""
        for event in events:
            assert event.type != "error"
            committed = committed or event.type == "input_audio_buffer.committed"
            if event.type == f"{KIND}.delta":
                deltas += event.delta
                early = early if committed else deltas
            if event.type == f"{KIND}.completed":
                break
        assert early
        assert len(event.transcript) > len(early)


class TestMistakes:
    @pytest.fixture
    def connection(self, server: Server) -> Iterator[ClientConnection]:
        with connect(f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription") as connection:
            assert json.loads(connection.recv())["type"] == "session.created"
            yield connection

    def test_garbage(self, connection: ClientConnection) -> None:
        update = {"type": "session.update"}
        for message, param in (
            ("garbage", None),
            ("[" * 50_000, None),
            (b"\x00\xff\xfe", None),
            ("[]", "type"),
            ("{}", "type"),
            (json.dumps({"type": "response.create"}), "type"),
            (json.dumps({"type": "input_audio_buffer.append"}), "audio"),
            (json.dumps({"type": "input_audio_buffer.append", "audio": "***"}), "audio"),
            (json.dumps({"type": "input_audio_buffer.append", "audio": "QUJD"}), "audio"),
            (json.dumps({"type": "input_audio_buffer.commit"}), None),
            (json.dumps({**update, "session": 5}), "session"),
            (
                json.dumps({**update, "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}),
                "format",
            ),
            (
                json.dumps({**update, "session": {"audio": {"input": {"transcription": {"model": "x"}}}}}),
                "model",
            ),
        ):
            connection.send(message)
            answer = json.loads(connection.recv(10))
            assert answer["type"] == "error"
            assert answer["error"]["message"]
            assert (answer["error"]["param"] or "").rpartition(".")[2] == (param or "")
        connection.send(json.dumps({"type": "input_audio_buffer.clear", "event_id": "mine"}))
        assert json.loads(connection.recv(10))["type"] == "input_audio_buffer.cleared"
        connection.send(json.dumps({"type": "nothing", "event_id": "mine"}))
        assert json.loads(connection.recv(10))["error"]["event_id"] == "mine"

    def test_too_large_a_message(self, connection: ClientConnection) -> None:
        connection.send("x" * (1 << 25))
        with pytest.raises(ConnectionClosed):
            connection.recv(10)

    def test_a_client_that_vanishes(self, server: Server, spoken: Spoken) -> None:
        for _ in range(3):
            connection = connect(f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription")
            audio = pcm(resample(spoken(1), 16000, 24000))
            connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            connection.send(json.dumps({"type": "input_audio_buffer.commit"}))
            connection.socket.close()
        for _ in range(250):
            if server.state.sockets == 0:
                break
            time.sleep(0.02)
        assert server.state.sockets == 0

    def test_another_origin(self, server: Server) -> None:
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{server.port}/v1/realtime", origin="https://example.org")  # type: ignore[arg-type]


def test_limits_of_sessions(folder: Path, serving: Serving) -> None:
    with serving([str(folder)], Limits(sockets=1, idle=0.5)) as server:
        url = f"ws://127.0.0.1:{server.port}/v1/realtime"
        with connect(url) as first, connect(url) as second:
            assert json.loads(first.recv(10))["type"] == "session.created"
            assert json.loads(second.recv(10))["error"]["code"] == "queue_full"
            with pytest.raises(ConnectionClosed):
                second.recv(10)
            assert json.loads(first.recv(10))["error"]["code"] == "idle_timeout"
        with connect(f"{url}?model=unknown") as third:
            assert json.loads(third.recv(10))["error"]["code"] == "model_not_found"
