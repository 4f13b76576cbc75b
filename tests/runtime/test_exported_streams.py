"""Streams of exported models give the results of the streams in torch."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser
from retort.export.onnx_model import export_onnx
from retort.export.stream_graphs import fire_chunk
from retort.nn.fire_stream import FireStream
from retort.runtime.load import can_stream, open_streams
from retort.runtime.recogniser import ExportedRecogniser, load_export
from retort.streaming.streamer import StreamBatch
from retort.streaming.utterances import StreamOptions, Streams
from tiny_streams import LEFT, tiny_stream_recogniser

KINDS = [
    *(("whisper", "whisper_decoder"), ("whisper", "whisper_window"), ("rotary", "cif"), ("rotary", "window")),
    *(("relative", "cif"), ("transformer", "cif")),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a kind to the model in torch and in ONNX Runtime."""

    @cache
    def make(kind: tuple[str, str]) -> tuple[Recogniser, ExportedRecogniser]:
        recogniser = tiny_stream_recogniser(*kind, seed=0 if kind[0] == "relative" else 2)
        recogniser.student.float()
        folder = tmp_path_factory.mktemp("-".join(kind))
        export_onnx(recogniser, folder)
        return recogniser, load_export(folder)

    return make


def noise(samples: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    steps = random.uniform(0.001, 0.5, samples // 800 + 2)
    return (
        random.normal(size=samples) * np.interp(np.arange(samples), 800 * np.arange(len(steps)), steps)
    ).astype(np.float32)


def run(streams: Streams[Any, Any], waves: list[np.ndarray], size: int) -> list[Any]:
    """The hypotheses of waves that arrive in pieces."""
    while len(streams.hypotheses()) < len(waves):
        streams.open()
    for start in range(0, max(map(len, waves)), size):
        streams.accept([wave[start : start + size] for wave in waves])
    streams.finish()
    return streams.hypotheses()


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_streams_are_those_in_torch(exported: Any, kind: tuple[str, str]) -> None:
    trained, other = exported(kind)
    assert can_stream(other)
    waves = [noise(size, size) for size in (9000, 1700, 5007, 300)]
    found_tokens = 0
    for chunk in (2, 5):
        options = StreamOptions(chunk, pause=0.0)
        expected = run(StreamBatch(trained, options, len(waves)), waves, 1111)
        found = run(open_streams(other, options), waves, 1111)
        alone = [run(open_streams(other, options), [wave], 700)[0] for wave in waves]
        for each in (found, alone):
            for own, wanted in zip(each, expected, strict=True):
                assert own.ids == wanted.ids
                np.testing.assert_allclose(own.ends, wanted.ends, atol=1e-3)
                np.testing.assert_allclose(own.log_probs, wanted.log_probs, atol=1e-4, rtol=1e-4)
        found_tokens += sum(len(each.ids) for each in expected)
    assert found_tokens >= 8


def test_several_utterances_and_bounded_memory(exported: Any) -> None:
    trained, other = exported(("whisper", "whisper_decoder"))
    options = StreamOptions(2, longest=0.8, pause=0.2)
    texts, sizes = [], []
    for streams in (StreamBatch(trained, options, 1), open_streams(other, options)):
        if not streams.hypotheses():
            streams.open()
        finished = []
        for seed in range(12):
            finished += streams.accept([noise(3200, seed)])[0].finished
            sizes.append(streams.state_size())
        texts.append([each.text for each in finished + streams.finish()[0].finished])
    assert texts[0] == texts[1]
    assert len(texts[0]) >= 2
    assert max(sizes[18:]) <= max(sizes[12:18])


def test_whole_utterances_are_normalised_by_running_statistics(exported: Any) -> None:
    trained, other = exported(("rotary", "cif"))
    wave = noise(16000, 3)
    options = {"vad": "none", "no_speech_threshold": 1.0}
    expected = trained.transcribe(wave, **options)
    assert other.transcribe(wave, **options).text == expected.text != ""


def test_fires_of_a_chunk_are_those_of_the_stream() -> None:
    random = torch.Generator().manual_seed(0)
    for batch in range(3):
        alphas = torch.rand(3, 9, generator=random).square() * (0.4 + batch)
        hidden = torch.randn(3, 9, 4, generator=random)
        streams = [FireStream() for _ in range(3)]
        total, vector = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 4)
        for start in (0, 4, 5):
            part = slice(start, {0: 4, 4: 5, 5: 9}[start])
            counts, times, vectors, total, vector = fire_chunk(
                hidden[:, part], alphas[:, part], total, vector
            )
            for row, stream in enumerate(streams):
                own, ends = stream(hidden[row, part], alphas[row, part])
                assert counts[row] == len(own)
                for number, (wanted, end) in enumerate(zip(own, ends)):
                    torch.testing.assert_close(vectors[row, number], wanted)
                    assert start + float(times[row, number]) == pytest.approx(end, abs=1e-9)


def test_models_of_whole_utterances_have_no_streams(tmp_path: Path) -> None:
    recogniser = tiny_stream_recogniser("transformer", "cif")
    recogniser.student.float().encoder.config.chunk = [0]
    export_onnx(recogniser, tmp_path)
    other = load_export(tmp_path)
    assert not can_stream(other)
    with pytest.raises(UserError):
        open_streams(other, StreamOptions(2))


def test_options_out_of_range(exported: Any) -> None:
    _, other = exported(("rotary", "cif"))
    for options in (StreamOptions(100_000), StreamOptions(2, left=LEFT + 1)):
        with pytest.raises(UserError):
            open_streams(other, options)


def test_a_stream_is_transcribed_without_torch(exported: Any, tmp_path: Path) -> None:
    trained, other = exported(("whisper", "whisper_decoder"))
    wave = tmp_path / "a.wav"
    soundfile.write(wave, noise(16000, 1), 16000, subtype="PCM_16")
    samples = soundfile.read(wave, dtype="float32")[0]
    batch = StreamBatch(trained, StreamOptions(2), 1)
    finished = batch.accept([samples])[0].finished + batch.finish()[0].finished
    script = (
        "import sys; sys.modules['torch'] = None; from retort.verbs.stream import stream_files; "
        "del sys.modules['torch']; stream_files(sys.argv[1], [sys.argv[2]], 2, False, 1.0, 1); "
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", script, str(other.streams_folder), str(wave)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [each.text for each in finished]
    assert finished
