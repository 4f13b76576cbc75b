"""A model of random weights in a server in a thread, and the real client of OpenAI."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("starlette")
openai = pytest.importorskip("openai")

from retort.audio.fbank import FbankConfig  # noqa: E402
from retort.config.schema import NormaliserConfig  # noqa: E402
from retort.decoding.recogniser import Recogniser, load  # noqa: E402
from retort.serving.limits import Limits  # noqa: E402
from retort.serving.server import Server  # noqa: E402
from retort.students.cif import CifStudentConfig  # noqa: E402
from retort.text.tokenizers import EOS, CharacterTokenizer  # noqa: E402
from tiny_students import DECODER, ENCODER, FRONTEND, talking_student  # noqa: E402

Serving = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with a card."""
    tokenizer = CharacterTokenizer(list("▁abcdefgh"))
    encoder = replace(ENCODER, layers=2, convolution_norm="layer")
    config = CifStudentConfig(frontend=replace(FRONTEND, layers=2), encoder=encoder, decoder=DECODER)
    student = talking_student(config, tokenizer.size, 20, seed=4, sharpness=10.0)
    with torch.no_grad():
        student.decoder.vocabulary.weight[EOS] = 0.0
    recogniser = Recogniser(student, tokenizer, FbankConfig(bins=20), NormaliserConfig(case="lower"))
    folder = tmp_path_factory.mktemp("models") / "tones"
    recogniser.save(folder)
    (folder / "README.md").write_text("---\nlanguage: en\n---\n")
    return folder


@pytest.fixture(scope="session")
def recogniser(folder: Path) -> Recogniser:
    return load(folder)


@contextmanager
def running(sources: Sequence[str], limits: Limits | None = None, **options: Any) -> Iterator[Server]:
    """A server on a free port in a thread."""
    server = Server(sources, port=0, limits=limits, **options)
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Serving:
    """`serving(sources, limits=None, **options)`: a context with a server."""
    return running


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    limits = Limits(megabytes=2.0, seconds=30.0, timeout=20.0, batch_wait=20.0)
    with running([str(folder), f"second={folder}"], limits) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def flac() -> Callable[..., bytes]:
    """`flac(samples, rate=16000)`: the bytes of a file."""

    def make(samples: np.ndarray, rate: int = 16000) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="FLAC")
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def spoken(say: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`spoken(seed, words=3)`: words of tones with noise around them, `(N,)` float32 of 16 bit precision."""

    def make(seed: int, words: int = 3) -> np.ndarray:
        draw = np.random.default_rng(seed)
        text = " ".join("".join(draw.choice(list("abcdefgh"), draw.integers(2, 6))) for _ in range(words))
        quiet = 1e-3 * draw.standard_normal(4000).astype(np.float32)
        wave = np.concatenate([quiet, say(text, seed), quiet])
        return (np.round(wave * 32767) / 32768).astype(np.float32)

    return make
