"""`retort transcribe --stream` and `retort evaluate --chunk`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.supervision import AlignmentItem

from retort.cli import main
from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser, load
from retort.evaluation.streaming import evaluate_latencies, evaluate_streaming
from retort.streaming.streamer import Streamer
from retort.verbs.stream import stream_files
from tiny_streams import tiny_stream_recogniser


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    recogniser = tiny_stream_recogniser("rotary", "cif", seed=2)
    recogniser.student.float()
    recogniser.save(folder)
    return folder


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wave") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000, subtype="PCM_16")
    return path


def expected(recogniser: Recogniser, wave: Path) -> list[str]:
    streamer = Streamer(recogniser, 2)
    samples = soundfile.read(wave, dtype="float32")[0]
    return [each.text for each in streamer.accept(samples).finished + streamer.finish().finished]


def test_files_and_raw_samples_give_the_same_lines(
    model: Path, wave: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = expected(load(model), wave)
    assert any(lines)
    stream_files(model, [str(wave)], 2, False, 1.0, 1)
    assert capsys.readouterr().out.splitlines() == lines
    raw = soundfile.read(wave, dtype="int16")[0].astype("<i2").tobytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(raw))))
    stream_files(model, ["-"], 2, True, 1.0, 1)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["text"] for each in found if each["final"]] == lines
    assert any(not each["final"] for each in found)


def test_options_of_whole_files_are_refused(model: Path, wave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in (["--stream", "--srt"], ["--chunk", "2"]):
        monkeypatch.setattr("sys.argv", ["retort", "transcribe", str(model), str(wave), *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2


def test_streams_are_scored(model: Path, cuts: CutSet, manifest: Path, tmp_path: Path) -> None:
    found = evaluate_streaming(load(model), str(manifest), 2, tmp_path, lambda done, total: None)
    assert found.utterances == len(cuts)
    assert found.cer > 0.0
    assert json.loads((tmp_path / "streaming-chunk2.json").read_text())["chunk"] == 2
    assert "chunk 2" in found.line()


def test_several_latencies(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = CutSet.from_file(manifest)
    aligned = []
    for cut in cuts:
        text = cut.supervisions[0].text or ""
        size = cut.duration / max(len(text.split()), 1)
        items = [AlignmentItem(word, size * number, 0.9 * size) for number, word in enumerate(text.split())]
        cut.supervisions[0].alignment = {"word": items}
        aligned.append(cut)
    CutSet.from_cuts(aligned).to_file(tmp_path / "aligned.jsonl.gz")
    found = evaluate_latencies(
        load(model), str(tmp_path / "aligned.jsonl.gz"), [2, 8, 0], tmp_path / "out", lambda done, total: None
    )
    assert [each.chunk for each in found] == [2, 8, 0]
    table = (tmp_path / "out" / "latencies.md").read_text().splitlines()
    assert len(table) == 5
    assert table[-1].startswith("| whole utterances")
    for each in found:
        assert each.wer_interval[0] <= each.wer <= each.wer_interval[1]
    monkeypatch.setattr("sys.argv", ["retort", "evaluate", str(model), str(manifest), "--chunk", "2,many"])
    with pytest.raises(SystemExit):
        main()


def test_a_chunk_is_checked(model: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        evaluate_streaming(load(model), str(manifest), 100_000, tmp_path, lambda done, total: None)
