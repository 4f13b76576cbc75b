"""Exported CIF models give the results of the models in torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retort.common.errors import UserError
from retort.corpora.open_cuts import open_cuts
from retort.decoding.options import DecodingOptions
from retort.export.graphs import fire
from retort.export.write import export_scored
from retort.nn.cif import integrate_and_fire
from retort.runtime.folder import read_export
from retort.runtime.recogniser import load_export
from retort.students.student import Encoded
from tiny_exports import Exported, waves

KINDS = ["whisper", "batch_norm", "window", "parallel"]
EVERYTHING = {"vad": "none", "no_speech_threshold": 1.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam", [1, 3])
def test_same_texts_times_and_scores(exported: Callable[[str], Exported], kind: str, beam: int) -> None:
    trained, other, _ = exported(kind)
    options = DecodingOptions(beam=beam, nbest=beam, **EVERYTHING)
    spoken = ""
    for wave in waves():
        expected, found = (each.alternatives(wave, options=options) for each in (trained, other))
        assert [each.transcript.text for each in found] == [each.transcript.text for each in expected]
        np.testing.assert_allclose(
            [each.score for each in found], [each.score for each in expected], atol=2e-3
        )
        for own, theirs in zip(found[0].transcript.words, expected[0].transcript.words, strict=True):
            assert own.text == theirs.text
            assert own.start == pytest.approx(theirs.start, abs=1e-4)
            assert own.end == pytest.approx(theirs.end, abs=1e-4)
            assert own.confidence == pytest.approx(theirs.confidence, abs=1e-3)
        assert found[0].transcript.no_speech == pytest.approx(expected[0].transcript.no_speech, abs=1e-3)
        spoken += found[0].transcript.text
    assert spoken


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_changes_nothing(exported: Callable[[str], Exported], kind: str) -> None:
    _, other, _ = exported(kind)
    options = DecodingOptions(beam=2, nbest=2, **EVERYTHING)
    segments = [each for wave in waves() for each in other.speech_segments([wave], options)]
    together = other.recognise_segments(segments, options)
    for segment, nbest in zip(segments, together, strict=True):
        (alone,) = other.recognise_segments([segment], options)
        assert isinstance(alone, list)
        assert isinstance(nbest, list)
        assert [each.transcript.text for each in alone] == [each.transcript.text for each in nbest]
        np.testing.assert_allclose([each.score for each in alone], [each.score for each in nbest], atol=1e-3)


def test_modes_and_options(exported: Callable[[str], Exported]) -> None:
    trained, other, _ = exported("batch_norm")
    wave = waves()[0]
    options = DecodingOptions(mode="ctc", **EVERYTHING)
    assert other.transcribe(wave, options=options).text == trained.transcribe(wave, options=options).text
    with pytest.raises(UserError, match="no lm"):
        other.transcribe(wave, options=DecodingOptions(lm="exp/lm", lm_weight=0.3))
    with pytest.raises(UserError, match="mode"):
        other.transcribe(wave, mode="joint")


def test_weights_of_zero_fire_nothing() -> None:
    hidden, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    fired = fire(Encoded(hidden, lengths), torch.zeros(2, 5), 0.5)
    assert fired.lengths.tolist() == [0, 0]
    assert not fired.embeddings.any()
    assert not fired.fire_times.any()


@pytest.mark.parametrize("seed", range(20))
def test_dense_fires_are_those_of_cif(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames, batch = 17, 3
    hidden = torch.randn(batch, frames, 4, generator=generator)
    lengths = torch.tensor([17, 9, 3])
    alphas = torch.rand(batch, frames, generator=generator) * (2.5 if seed % 2 else 0.8)
    if seed % 3 == 0:
        alphas = (alphas * 4).round() / 4  # fires at the ends of frames
    alphas = alphas.masked_fill(torch.arange(frames) >= lengths[:, None], 0.0)
    expected = integrate_and_fire(hidden, alphas, lengths, tail=0.5)
    found = fire(Encoded(hidden, lengths), alphas, 0.5)
    size = expected.embeddings.shape[1]
    assert found.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(found.embeddings[:, :size], expected.embeddings, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.fire_times[:, :size], expected.fire_times, atol=1e-5, rtol=1e-5)


def test_it_runs_without_torch(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    trained, _, folder = exported("batch_norm")
    path = tmp_path / "a.wav"
    soundfile.write(path, waves()[0], 16000)
    program = (
        "import sys, retort\n"
        f"asr = retort.load({str(folder)!r}, vad='none', no_speech_threshold=1.0)\n"
        f"print(asr.transcribe({str(path)!r}).text)\n"
        "sys.argv = ['retort', 'transcribe', *sys.argv[1:]]\n"
        "from retort.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'lhotse', 'transformers', 'scipy', 'huggingface_hub', 'safetensors', 'accelerate'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    arguments = [str(folder), str(path), "--vad", "none", "--no-speech-threshold", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    first, second, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert first == second == trained.transcribe(path, **EVERYTHING).text


def test_damage_is_one_line(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    from shutil import copytree

    _, _, folder = exported("parallel")
    copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"encoder\.onnx"):
        load_export(tmp_path / "copy")
    with pytest.raises(UserError, match="no exported model"):
        load_export(tmp_path)


def test_an_export_scores_itself(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    trained, _, _ = exported("parallel")
    data = tmp_path / "data"
    data.mkdir()
    scp, texts = [], []
    for number, wave in enumerate(waves()):
        soundfile.write(data / f"{number}.wav", wave, 16000)
        scp.append(f"u{number} {data / f'{number}.wav'}\n")
        texts.append(f"u{number} abc def\n")
    (data / "wav.scp").write_text("".join(scp))
    (data / "text").write_text("".join(texts))
    out = tmp_path / "out"
    done = export_scored(trained, out, "onnx", int8=True, cuts=open_cuts(data), data="data")
    assert list(done.scores) == ["torch", "onnx", "int8"]
    assert done.scores["onnx"].cer == done.scores["torch"].cer
    readme = (out / "README.md").read_text()
    assert f"| onnx | {done.scores['onnx'].wer:.2%} |" in readme
    assert "retort transcribe" in readme
    description = read_export(out)
    assert description.weights == "int8"
    assert description.scores["int8"]["cer"] == pytest.approx(done.scores["int8"].cer, abs=1e-4)
    assert isinstance(load_export(out).transcribe(waves()[0]).text, str)
