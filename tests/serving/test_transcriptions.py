"""The HTTP endpoints, with the real client."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import to_srt, to_vtt
from retort.serving.limits import Limits
from retort.serving.server import Server

Spoken = Callable[..., np.ndarray]
Flac = Callable[..., bytes]
Serving = Callable[..., Any]


def create(client: Any, data: bytes, **options: Any) -> Any:
    return client.audio.transcriptions.create(file=("a.flac", data), **{"model": "tones", **options})


@pytest.fixture(scope="module")
def wave(spoken: Spoken) -> np.ndarray:
    return spoken(1)


@pytest.fixture(scope="module")
def data(wave: np.ndarray, flac: Flac) -> bytes:
    return flac(wave)


class TestFormats:
    def test_json(self, client: Any, data: bytes, wave: np.ndarray, recogniser: Recogniser) -> None:
        expected = recogniser.transcribe_samples(wave)
        assert expected.text
        found = create(client, data, include=["logprobs"])
        assert found.text == expected.text
        assert found.usage.seconds == pytest.approx(len(wave) / 16000, abs=1e-3)
        assert "".join(each.token for each in found.logprobs).split() == expected.text.split()
        assert [each.logprob for each in found.logprobs] == pytest.approx(
            [math.log(each.confidence) for each in expected.tokens]
        )

    def test_plain_bodies(self, client: Any, data: bytes, wave: np.ndarray, recogniser: Recogniser) -> None:
        expected = recogniser.transcribe_samples(wave)
        assert create(client, data, response_format="text") == expected.text + "\n"
        assert create(client, data, response_format="srt") == to_srt(expected)
        assert create(client, data, response_format="vtt") == to_vtt(expected)

    def test_verbose(self, client: Any, data: bytes, wave: np.ndarray, recogniser: Recogniser) -> None:
        expected = recogniser.transcribe_samples(wave)
        both = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
        found = create(client, data, **both)
        assert (found.text, found.language) == (expected.text, "en")
        assert found.duration == pytest.approx(len(wave) / 16000, abs=1e-3)
        assert [(each.word, each.start, each.end) for each in found.words] == [
            (each.text, pytest.approx(each.start, abs=1e-3), pytest.approx(each.end, abs=1e-3))
            for each in expected.words
        ]
        (segment,) = found.segments
        assert segment.text == expected.text
        assert segment.tokens == recogniser.tokenizer.encode(expected.text)
        logs = [math.log(each.confidence) for each in expected.tokens]
        assert segment.avg_logprob == pytest.approx(sum(logs) / len(logs))
        assert segment.no_speech_prob == pytest.approx(expected.no_speech)
        assert 0 < segment.compression_ratio < 3
        assert create(client, data, response_format="verbose_json").words is None

    def test_stream(self, client: Any, spoken: Spoken, flac: Flac, recogniser: Recogniser) -> None:
        quiet = 1e-3 * np.random.default_rng(0).standard_normal(5 * 16000).astype(np.float32)
        long = np.concatenate([spoken(2), quiet, spoken(3), quiet, spoken(4)])
        expected = recogniser.transcribe_samples((np.round(long * 32767) / 32768).astype(np.float32)).text
        *deltas, done = create(client, flac(long), stream=True)
        assert [each.type for each in deltas] == ["transcript.text.delta"] * 3
        assert "".join(each.delta for each in deltas) == done.text
        assert (done.type, len(done.text.split())) == ("transcript.text.done", len(expected.split()))

    def test_silence_is_an_empty_text(self, client: Any, flac: Flac) -> None:
        found = create(client, flac(np.zeros(16000, np.float32)), response_format="verbose_json")
        assert (found.text, found.segments) == ("", [])

    def test_the_language_is_that_of_the_client(self, client: Any, data: bytes) -> None:
        more = {"language": "de", "prompt": "abc", "temperature": 0.2}
        assert create(client, data, response_format="verbose_json", **more).language == "de"

    def test_keywords(self, client: Any, data: bytes, wave: np.ndarray, recogniser: Recogniser) -> None:
        plain = recogniser.transcribe_samples(wave).text
        keywords = [[word, f"{word} dab"] for word in ("bad", "cab", "fade")] + [["a", "b", "c"], ["gh", "hg"]]
        expected = [recogniser.transcribe_samples(wave, hotwords=tuple(each)).text for each in keywords]
        assert set(expected) - {plain}, "no keyword has an effect"
        assert [create(client, data, extra_body={"keywords": each}).text for each in keywords] == expected
        assert create(client, data).text == plain
        assert create(client, data, extra_body={"keywords": [keywords[0][0]]}).text


def test_the_models(client: Any) -> None:
    assert [each.id for each in client.models.list()] == ["tones", "second"]
    assert client.models.retrieve("second").id == "second"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("third")


def test_health_and_metrics(client: Any, url: str, data: bytes) -> None:
    create(client, data)
    assert httpx.get(f"{url}/healthz").json()["models"] == ["tones", "second"]
    text = httpx.get(f"{url}/metrics").text
    count = re.search(r'retort_requests_total\{path="/v1/audio/transcriptions",status="200"\} (\d+)', text)
    assert count is not None
    assert int(count[1]) >= 1
    assert re.search(r'retort_batch_segments_bucket\{model="tones",le="\+Inf"\} [1-9]', text)
    assert all(re.fullmatch(r"# .*|\w+(\{.*\})? [-+.\de]+", line) for line in text.splitlines())


def test_batches_equal_single_requests(
    client: Any, url: str, spoken: Spoken, flac: Flac, recogniser: Recogniser
) -> None:
    waves = [spoken(seed, 1 + seed % 5) for seed in range(12)]
    before = _batches(url)
    with ThreadPoolExecutor(12) as pool:
        options = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
        found = list(pool.map(lambda wave: create(client, flac(wave), **options), waves))
    count, segments = (after - former for after, former in zip(_batches(url), before))
    assert segments == 12
    assert count < 12, "nothing was batched"
    for each, wave in zip(found, waves):
        expected = recogniser.transcribe_samples(wave)
        assert each.text == expected.text
        confidences = [word.confidence for word in each.words]
        assert confidences == pytest.approx([word.confidence for word in expected.words], abs=1e-4)


def _batches(url: str) -> tuple[int, int]:
    text = httpx.get(f"{url}/metrics").text
    found = [
        re.search(rf'retort_batch_segments_{name}\{{model="tones"\}} (\d+)', text)
        for name in ("count", "sum")
    ]
    return tuple(int(each[1]) if each else 0 for each in found)  # type: ignore[return-value]


def status(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, parameter and code of an error in OpenAI's schema."""
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    return answer.status_code, error["param"], error["code"]


class TestMistakes:
    def post(self, url: str, **content: Any) -> httpx.Response:
        return httpx.post(f"{url}/v1/audio/transcriptions", timeout=30, **content)

    def test_no_file(self, url: str) -> None:
        empty = {"other": ("a", b"abc")}
        assert status(self.post(url, files=empty, data={"model": "tones"})) == (400, "file", None)
        assert status(self.post(url, files=empty, data={"file": "text"})) == (400, "file", None)
        assert status(self.post(url, files={"file": ("a.wav", b"")})) == (400, "file", None)

    def test_no_form(self, url: str) -> None:
        assert status(self.post(url, json={"model": "tones"}))[0] == 400
        assert status(self.post(url))[0] == 400
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x; charset=klingon"):
            assert status(self.post(url, content=b"no form", headers={"Content-Type": kind}))[0] == 400

    def test_a_lie_in_the_content_type(
        self, url: str, data: bytes, wave: np.ndarray, recogniser: Recogniser
    ) -> None:
        form = {"model": "tones"}
        lie = self.post(
            url, files={"file": ("a.wav", b"<html>not audio</html>" * 100, "audio/wav")}, data=form
        )
        assert status(lie) == (400, "file", "invalid_audio")
        assert "/tmp" not in lie.text
        other = self.post(url, files={"file": ("a.png", data, "image/png")}, data=form)
        assert other.json()["text"] == recogniser.transcribe_samples(wave).text

    def test_wrong_fields(self, url: str, data: bytes) -> None:
        for form, param in (
            ({"response_format": "xml"}, "response_format"),
            ({"temperature": "hot"}, "temperature"),
            ({"timestamp_granularities[]": "letter"}, "timestamp_granularities[]"),
            ({"stream": "maybe"}, "stream"),
            ({"model": ""}, "model"),
        ):
            answer = self.post(url, files={"file": ("a", data)}, data={"model": "tones", **form})
            assert status(answer)[:2] == (400, param)
        answer = self.post(url, files={"file": ("a", data)}, data={"model": "whisper-1"})
        assert status(answer) == (404, "model", "model_not_found")

    def test_too_large(self, url: str) -> None:
        form = {"model": "tones"}
        assert status(self.post(url, files={"file": ("a", bytes(3_000_000))}, data=form))[::2] == (
            413,
            "body_too_large",
        )

        def chunks() -> Any:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(30):
                yield bytes(100_000)

        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert status(self.post(url, content=chunks(), headers=kind))[::2] == (413, "body_too_large")

    def test_too_long_and_too_short(self, url: str, flac: Flac) -> None:
        long = flac(np.zeros(31 * 16000, np.float32))
        assert status(self.post(url, files={"file": ("a", long)}, data={"model": "tones"}))[::2] == (
            413,
            "audio_too_long",
        )
        short = flac(0.1 * np.ones(20, np.float32) * np.array([1, -1] * 10, np.float32))
        assert status(self.post(url, files={"file": ("a", short)}, data={"model": "tones"}))[0] == 400

    def test_other_paths_and_origins(self, url: str) -> None:
        assert status(httpx.get(f"{url}/nowhere"))[0] == 404
        assert status(httpx.get(f"{url}/v1/audio/transcriptions"))[0] == 405
        assert status(httpx.get(f"{url}/healthz", headers={"Origin": "https://example.org"}))[0] == 403
        assert status(httpx.get(f"{url}/healthz", headers={"Host": "example.org"}))[0] == 403
        own = httpx.get(f"{url}/healthz", headers={"Origin": url})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers

    def test_a_client_that_vanishes(self, server: Server, url: str, client: Any, data: bytes) -> None:
        head = (
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"'
        )
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode())
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"\x00\xff garbage \r\n\r\n")
            assert b"400" in connection.recv(1000)
        for _ in range(100):
            if server.state.active == 0:
                break
            time.sleep(0.02)
        assert server.state.active == 0
        assert create(client, data).text


def test_a_full_queue(folder: Path, serving: Serving, data: bytes) -> None:
    with serving([str(folder)], Limits(queue=1, batch_wait=400.0)) as server:
        url = f"http://127.0.0.1:{server.port}/v1/audio/transcriptions"

        def post(_: int) -> httpx.Response:
            return httpx.post(url, files={"file": ("a", data)}, timeout=30)

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(post, range(4)))
        refused = [each for each in answers if each.status_code == 429]
        assert 1 <= len(refused) < 4
        assert all(each.status_code == 200 for each in answers if each not in refused)
        assert all(int(each.headers["Retry-After"]) >= 1 for each in refused)
        assert status(refused[0])[2] == "queue_full"


def test_a_client_that_vanishes_while_its_file_is_recognised(
    folder: Path, serving: Serving, data: bytes
) -> None:
    with serving([str(folder)], Limits(batch_wait=3000.0)) as server:
        (model,) = server.state.models.by_name.values()
        url = f"http://127.0.0.1:{server.port}/v1/audio/transcriptions"
        request = httpx.Request("POST", url, files={"file": ("a", data)})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            while not model.worker.waiting:
                time.sleep(0.01)
        end = time.monotonic() + 2.5
        while server.state.active and time.monotonic() < end:
            time.sleep(0.01)
        assert server.state.active == 0, "the request is kept although nobody waits for it"
        assert "retort_disconnects_total 1" in server.state.metrics.text()


def test_a_timeout(folder: Path, serving: Serving, data: bytes) -> None:
    with serving([str(folder)], Limits(timeout=0.2, batch_wait=3000.0)) as server:
        answer = httpx.post(
            f"http://127.0.0.1:{server.port}/v1/audio/transcriptions", files={"file": ("a", data)}, timeout=30
        )
        assert status(answer)[::2] == (408, "timeout")


def test_what_runs_is_finished_when_the_server_stops(
    folder: Path, serving: Serving, data: bytes, wave: np.ndarray, recogniser: Recogniser
) -> None:
    answers: list[httpx.Response] = []
    with serving([str(folder)], Limits(batch_wait=1000.0)) as server:
        url = f"http://127.0.0.1:{server.port}/v1/audio/transcriptions"
        running = threading.Thread(
            target=lambda: answers.append(httpx.post(url, files={"file": ("a", data)}, timeout=30))
        )
        running.start()
        while not any(each.worker.waiting for each in server.state.models.by_name.values()):
            time.sleep(0.01)
        server.should_exit = True
        running.join(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{server.port}/healthz")
    assert answers[0].json()["text"] == recogniser.transcribe_samples(wave).text


def test_other_origins_by_choice(folder: Path, serving: Serving) -> None:
    with serving([str(folder)], origins=["https://example.org"]) as server:
        origin = {"Origin": "https://example.org"}
        answer = httpx.get(f"http://127.0.0.1:{server.port}/healthz", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"


def test_an_error_as_the_client_reads_it(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, b"garbage" * 100)
    assert caught.value.code == "invalid_audio"
    assert caught.value.param == "file"
    assert json.dumps(caught.value.body)
