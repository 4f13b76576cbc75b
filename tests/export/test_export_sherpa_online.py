"""Models that were trained in chunks in sherpa-onnx: the engine gives the texts of torch while audio arrives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from retort.audio.fbank import FbankConfig
from retort.audio.online import RunningCmvn
from retort.common.errors import UserError
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import Recogniser
from retort.export.graphs import normalise_running
from retort.export.onnx_model import quantise_folder
from retort.export.sherpa import FLOOR
from retort.export.sherpa_online import check_online, completed, export_online, online_chunk
from retort.export.write import export_scored
from retort.nn.frontend import FramesConfig, make_frontend
from retort.verbs.export import Engine, export
from tiny_streams import tiny_stream_recogniser


def online_recogniser(encoder: str, student: str, seed: int = 0) -> Recogniser:
    """A tiny model with random weights and features that sherpa-onnx computes, 40 ms per output frame."""
    made = tiny_stream_recogniser(encoder, student, seed)
    made.student.float()
    if student == "transducer":
        made.student.config.transducer.symbols = 1  # type: ignore[attr-defined]
    features = FbankConfig(bins=20, statistics="running", floor=FLOOR)
    return Recogniser(made.student, made.tokenizer, features, made.normalise.config)


def noise(samples: int, seed: int) -> np.ndarray:
    """Noise whose loudness changes, so that normalisation matters."""
    random = np.random.default_rng(seed)
    steps = random.uniform(0.001, 0.3, samples // 800 + 2)
    loudness = np.interp(np.arange(samples), 800 * np.arange(len(steps)), steps)
    return (random.normal(size=samples) * loudness).clip(-1.0, 1.0).astype(np.float32)


def in_pieces(recogniser: Any, waves: list[np.ndarray], size: int) -> list[str]:
    """The texts of streams that are decoded together."""
    streams = [recogniser.create_stream() for _ in waves]
    for start in range(0, max(map(len, waves)), size):
        for stream, wave in zip(streams, waves):
            stream.accept_waveform(16000, wave[start : start + size])
        while ready := [stream for stream in streams if recogniser.is_ready(stream)]:
            recogniser.decode_streams(ready)
    for stream in streams:
        stream.input_finished()
        while recogniser.is_ready(stream):
            recogniser.decode_stream(stream)
    return [recogniser.get_result(stream) for stream in streams]


@pytest.mark.parametrize(
    ("encoder", "student", "seed", "chunk"),
    [
        ("relative", "ctc", 0, 2),
        ("zipformer", "ctc", 2, 4),
        ("relative", "transducer", 0, 4),
    ],
)
def test_sherpa_onnx_gives_the_same_texts(
    tmp_path: Path, encoder: str, student: str, seed: int, chunk: int
) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    recogniser = online_recogniser(encoder, student, seed)
    made = export_online(recogniser, tmp_path, chunk)
    assert made.kind == ("transducer" if student == "transducer" else "zipformer2_ctc")
    waves = [noise(size, size) for size in (24000, 3000)]
    expected = [made.torch(wave) for wave in waves]
    assert recogniser.student.encoder.chunks is None
    assert all(expected)
    recognise = made.recognise()
    assert [recognise(wave) for wave in waves] == expected
    engine = made.open(sherpa_onnx.OnlineRecognizer)
    whole = [made.completed(wave) for wave in waves]
    for size in (701, 30000):
        assert in_pieces(engine, whole, size) == expected
    if student == "ctc":
        quantise_folder(tmp_path)
        assert isinstance(made.recognise()(waves[0]), str)


def test_a_head_of_a_cif_student_is_scored_while_audio_arrives(tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for number in range(2):
        soundfile.write(data / f"{number}.wav", noise(20000 - 9000 * number, number), 16000)
    (data / "wav.scp").write_text("".join(f"u{number} {data / f'{number}.wav'}\n" for number in range(2)))
    (data / "text").write_text("u0 abc bcb\nu1 b b b\n")
    recogniser = online_recogniser("transformer", "cif", 2)
    done = export_scored(recogniser, out, "sherpa-onnx", chunk=3, cuts=open_cuts(data), data="data")
    assert list(done.scores) == ["torch", "sherpa-onnx"]
    done.check()
    assert 0.0 < done.scores["sherpa-onnx"].cer == done.scores["torch"].cer != 1.0
    readme = (out / "README.md").read_text()
    assert "chunks of 120 ms" in readme
    assert "sherpa-onnx --tokens=tokens.txt --zipformer2-ctc-model=model.onnx" in readme


def test_the_option_is_for_sherpa_onnx(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--chunk is not supported for onnx"):
        export(tmp_path, tmp_path / "out", Engine.onnx, chunk=4)


def test_completed_audio_has_the_frames_of_its_chunks() -> None:
    for samples in (0, 1, 2559, 2560, 2561, 9999):
        made = completed(np.ones(samples, np.float32), 17, 16, 16000)
        chunks, rest = divmod(len(made) // 160 - 17 - 1, 16)
        assert rest == 0
        assert len(made) % 160 == 0
        assert chunks * 2560 < max(samples, 1) <= (chunks + 1) * 2560
        assert made.sum() == samples


def test_cmvn_continues_from_its_sums() -> None:
    features = torch.randn(2, 30, 3, dtype=torch.float64) * 4 + 10
    expected = torch.stack([torch.from_numpy(RunningCmvn()(each.numpy())) for each in features])
    first, sums = normalise_running(features[:, :12], torch.zeros(2, 2, 3).double(), torch.zeros(2).long())
    second, _ = normalise_running(features[:, 9:], sums[:, :, 8], torch.full((2,), 9))
    torch.testing.assert_close(first, expected[:, :12].float())
    torch.testing.assert_close(second, expected[:, 9:].float())


def test_models_without_online_layout() -> None:
    recogniser = online_recogniser("zipformer", "ctc")
    assert online_chunk(recogniser, None) == 2
    assert online_chunk(recogniser, 0) == 0
    with pytest.raises(UserError, match="multiple"):
        check_online(recogniser, 3)
    recogniser.student.encoder.frontend = make_frontend(FramesConfig(stride=2), 20, 12)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"conv2d.*--chunk 0"):
        check_online(recogniser, 4)
    recogniser = online_recogniser("relative", "ctc")
    recogniser.features = replace(recogniser.features, statistics="utterance")
    with pytest.raises(UserError, match=r"features\.statistics: running.*--chunk 0"):
        check_online(recogniser, 4)
    recogniser.student.encoder.config.chunk = [0]
    assert online_chunk(recogniser, None) == 0
    with pytest.raises(UserError, match="not trained in chunks"):
        check_online(recogniser, 4)
