"""The Realtime socket with a model that recognises audio while it arrives."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from websockets.asyncio.client import connect

from retort.audio.resampling import resample
from retort.decoding.recogniser import Recogniser, load
from retort.serving.limits import Limits
from retort.serving.server import Server
from retort.serving.turns import Spoken as SpokenSamples
from retort.serving.turns import Started, Stopped, Turns
from retort.streaming.streamer import Streamer
from retort.streaming.utterances import joined
from tiny_streams import tiny_stream_recogniser

KIND = "conversation.item.input_audio_transcription"
CHUNK = 4
RATE = 24000

Spoken = Callable[..., np.ndarray]
Serving = Callable[..., Any]


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was "trained" in chunks."""
    recogniser = tiny_stream_recogniser("rotary", "cif", seed=2)
    recogniser.student.float()
    folder = tmp_path_factory.mktemp("models") / "live"
    recogniser.save(folder)
    return folder


@pytest.fixture(scope="module")
def recogniser(chunked: Path) -> Recogniser:
    return load(chunked)


@pytest.fixture(scope="module")
def server(chunked: Path, folder: Path, serving: Serving) -> Iterator[Server]:
    with serving([str(chunked), f"whole={folder}"], Limits(sockets=64, timeout=60.0), chunk=CHUNK) as server:
        yield server


def pcm(samples: np.ndarray) -> bytes:
    return np.round(samples * 32767).astype("<i2").tobytes()


def expected(recogniser: Recogniser, samples: np.ndarray) -> str:
    """What a stream by itself recognises in `samples` at 24 kHz."""
    wave = (np.round(samples * 32767).astype(np.int16) / np.float32(32768)).astype(np.float32)
    streamer = Streamer(recogniser, CHUNK)
    finished = streamer.accept(resample(wave, RATE, 16000)).finished
    return joined([*finished, *streamer.finish().finished], recogniser).text


def noise(seconds: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    steps = random.uniform(0.01, 0.3, round(seconds * RATE) // 1200 + 2)
    loudness = np.interp(np.arange(round(seconds * RATE)), 1200 * np.arange(len(steps)), steps)
    return (random.normal(size=len(loudness)) * loudness).clip(-0.99, 0.99).astype(np.float32)


def session(turns: dict[str, Any] | None, model: str = "live") -> dict[str, Any]:
    source = {"turn_detection": turns, "transcription": {"model": model}}
    return {"type": "transcription", "audio": {"input": source}}


class Connection:
    """A session of the WebSocket, with what it received."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.deltas: dict[str, list[str]] = {}
        self.completed: list[dict[str, Any]] = []
        self.kinds: list[str] = []

    async def send(self, kind: str, **content: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **content}))

    async def append(self, samples: np.ndarray) -> None:
        await self.send("input_audio_buffer.append", audio=base64.b64encode(pcm(samples)).decode())

    async def receive(self, kind: str) -> dict[str, Any]:
        """The next event of a kind."""
        while True:
            event: dict[str, Any] = json.loads(await asyncio.wait_for(self._socket.recv(), 60))
            assert event["type"] not in ("error", f"{KIND}.failed"), event
            self.kinds.append(event["type"])
            if event["type"] == f"{KIND}.delta":
                self.deltas.setdefault(event["item_id"], []).append(event["delta"])
            if event["type"] == f"{KIND}.completed":
                self.completed.append(event)
            if event["type"] == kind:
                return event


def with_session(
    server: Server, turns: dict[str, Any] | None, work: Callable[[Connection], Any]
) -> Connection:
    async def run() -> Connection:
        async with connect(
            f"ws://127.0.0.1:{server.port}/v1/realtime?intent=transcription&model=live"
        ) as socket:
            own = Connection(socket)
            await own.send("session.update", session=session(turns))
            await own.receive("session.updated")
            await work(own)
            return own

    return asyncio.run(run())


def test_text_arrives_while_audio_is_appended(server: Server, recogniser: Recogniser) -> None:
    wave = noise(2.0, 1)

    async def work(own: Connection) -> None:
        for part in np.split(wave, 3):
            for start in range(0, len(part), 2400):
                await own.append(part[start : start + 2400])
            await own.receive(f"{KIND}.delta")
        assert "input_audio_buffer.committed" not in own.kinds
        await own.send("input_audio_buffer.commit")
        await own.receive(f"{KIND}.completed")

    own = with_session(server, None, work)
    (done,) = own.completed
    assert done["transcript"] == expected(recogniser, wave) != ""
    assert "".join(own.deltas[done["item_id"]]) == done["transcript"]
    assert done["usage"]["seconds"] == pytest.approx(2.0, abs=1e-3)
    assert " ".join(each["word"] for each in done["words"]) == done["transcript"]


def test_the_client_of_openai(server: Server, recogniser: Recogniser) -> None:
    openai = pytest.importorskip("openai")
    wave = noise(1.0, 2)
    with (
        openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0) as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        connection.session.update(session=session(None))
        connection.input_audio_buffer.append(audio=base64.b64encode(pcm(wave)).decode())
        connection.input_audio_buffer.commit()
        text = ""
        for event in connection:
            assert event.type not in ("error", f"{KIND}.failed")
            if event.type == f"{KIND}.delta":
                text += event.delta
            if event.type == f"{KIND}.completed":
                break
    assert text == event.transcript == expected(recogniser, wave)


def test_turns_are_streams(server: Server, spoken: Spoken) -> None:
    quiet = (1e-3 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    parts = [quiet, resample(spoken(3, 8), 16000, RATE), quiet, resample(spoken(4, 8), 16000, RATE), quiet]
    wave = np.concatenate(parts)

    async def work(own: Connection) -> None:
        for start in range(0, len(wave), 2400):
            await own.append(wave[start : start + 2400])
        while len(own.completed) < 2:
            await own.receive(f"{KIND}.completed")

    turns = {"type": "server_vad", "silence_duration_ms": 600, "prefix_padding_ms": 200}
    own = with_session(server, turns, work)
    assert own.kinds.count("input_audio_buffer.speech_started") == 2
    for done in own.completed:
        assert "".join(own.deltas.get(done["item_id"], [])) == done["transcript"]
        assert done["transcript"]
    first, second = own.completed
    assert 1.0 <= first["words"][0]["start"] < first["words"][-1]["end"] <= second["words"][0]["start"]


def test_many_streams_at_once(server: Server, recogniser: Recogniser) -> None:
    waves = [noise(0.4 + 0.2 * (seed % 3), seed) for seed in range(64)]

    async def one(number: int) -> str:
        async with connect(f"ws://127.0.0.1:{server.port}/v1/realtime?model=live") as socket:
            own = Connection(socket)
            await own.send("session.update", session=session(None))
            for start in range(0, len(waves[number]), 2400):
                await own.append(waves[number][start : start + 2400])
                await asyncio.sleep(0.001)
            await own.send("input_audio_buffer.commit")
            done = await own.receive(f"{KIND}.completed")
            return str(done["transcript"])

    async def run() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(len(waves))))

    found = asyncio.run(run())
    wanted = [expected(recogniser, wave) for wave in waves]
    # A probability that is nearly that of another token may be the smaller one in a batch.
    assert sum(text == other for text, other in zip(found, wanted)) == 64
    for _ in range(250):
        with urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        if 'retort_streams_active{model="live"} 0' in lines:
            break
        time.sleep(0.02)
    else:
        pytest.fail("streams are left")


def test_a_client_that_vanishes_leaves_no_stream(server: Server) -> None:
    async def run() -> None:
        async with connect(f"ws://127.0.0.1:{server.port}/v1/realtime?model=live") as socket:
            own = Connection(socket)
            await own.send("session.update", session=session(None))
            await own.append(noise(1.5, 1))
            await own.receive(f"{KIND}.delta")
            socket.transport.abort()

    asyncio.run(run())
    live = server.state.model("live").live
    assert live is not None
    for _ in range(250):
        if not live.active and not server.state.sockets:
            break
        time.sleep(0.02)
    assert live.active == server.state.sockets == 0


def test_models_of_whole_utterances_have_no_streams(server: Server) -> None:
    assert server.state.model("whole").live is None


@pytest.mark.parametrize("size", [1600, 10**6])
def test_streamed_turns_give_out_their_samples(spoken: Spoken, size: int) -> None:
    quiet = (1e-3 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    wave = np.concatenate([quiet, spoken(1, 18), quiet])
    given: list[tuple[int, int, np.ndarray]] = []
    turns, whole = Turns(16000, streamed=True), Turns(16000)
    for start in range(0, len(wave), size):
        for event in turns.add(wave[start : start + size]):
            if isinstance(event, Started):
                given.append((event.start, 0, np.zeros(0, np.float32)))
            elif isinstance(event, SpokenSamples):
                given[-1] = (given[-1][0], 0, np.concatenate([given[-1][2], event.samples]))
            else:
                assert not len(event.samples)
                given[-1] = (given[-1][0], event.end, given[-1][2])
    stopped = [event for event in whole.add(wave) if isinstance(event, Stopped)]
    assert [(start, end) for start, end, _ in given] == [(each.start, each.end) for each in stopped]
    for (start, end, samples), each in zip(given, stopped):
        np.testing.assert_array_equal(samples[: end - start], each.samples)
        assert 0 <= len(samples) - (end - start) <= 0.21 * 16000
