from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet, Recording, RecordingSet
from waves import write_wave

from retort.common.errors import BadUtterance, UserError
from retort.corpora import PREPARERS
from retort.corpora.cuts import (
    CheckedCuts,
    Prepared,
    Rejected,
    make_cut,
    open_recording,
    write_rejected,
    write_split,
)
from retort.corpora.open_cuts import find_data, open_cuts


def cut_line(path: str, name: str = "a", **changes: Any) -> dict[str, Any]:
    """A cut as lhotse writes it."""
    recording = {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": path}],
        "sampling_rate": 16000,
        "num_samples": 16000,
        "duration": 1.0,
        "channel_ids": [0],
    }
    supervision = {
        "id": name, "recording_id": name, "start": 0.0, "duration": 1.0, "channel": 0,
        "text": "HELLO", "speaker": "S",
    }  # fmt: skip
    cut = {
        "id": name, "start": 0.0, "duration": 1.0, "channel": 0, "supervisions": [supervision],
        "recording": recording, "type": "MonoCut",
    }  # fmt: skip
    return cut | changes


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.jsonl"])
def test_written_cuts_come_back(tmp_path: Path, name: str) -> None:
    wave = write_wave(tmp_path / "a.wav", rate=8000, channels=2)
    cut = make_cut("u1", open_recording("r1", wave), " HELLO  THERE ", "s1")
    path = tmp_path / name
    CutSet.from_cuts([cut]).to_file(path)
    found = open_cuts(path)
    assert found.rejected == []
    [back] = found.cuts
    assert (back.id, back.supervisions[0].text, back.supervisions[0].speaker) == ("u1", "HELLO  THERE", "s1")
    assert back.recording.sampling_rate == 8000  # the true rate
    assert back.load_audio().shape == (1, 8000)
    assert back.resample(16000).load_audio().shape == (1, 16000)


def test_relative_audio_is_tried_from_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, folder = tmp_path / "here", tmp_path / "corpus" / "lists"
    here.mkdir()
    monkeypatch.chdir(here)
    for place, name in ((here, "a"), (folder, "b"), (folder.parent, "c")):
        write_wave(place / f"{name}.wav")
    write_wave(folder / "a.wav")
    path = write_lines(folder / "x.jsonl", [cut_line(f"{name}.wav", name) for name in "abc"])
    found = open_cuts(path)
    sources = {cut.id: Path(cut.recording.sources[0].source) for cut in found.cuts}
    assert sources == {"a": here / "a.wav", "b": folder / "b.wav", "c": folder.parent / "c.wav"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b", ', "not valid JSON"),
        ("[1, 2]", "not a cut"),
        ("{}", "not a cut"),
        (cut_line("a.wav", "b", type="Nonsense"), "invalid"),
        (
            {key: value for key, value in cut_line("a.wav", "b").items() if key != "start"},
            "invalid",
        ),
        (cut_line("a.wav", "b")["supervisions"][0], "not a MonoCut but a SupervisionSegment"),
        (cut_line("a.wav", "b")["recording"], "not a MonoCut but a Recording"),
        (cut_line("a.wav", "b", supervisions=[]), "0 supervisions"),
        (cut_line("a.wav", "b", supervisions=cut_line("a.wav")["supervisions"] * 2), "2 supervisions"),
        (
            cut_line("a.wav", "b", supervisions=[cut_line("a.wav")["supervisions"][0] | {"text": " "}]),
            "is empty",
        ),
        (cut_line("nowhere.wav", "b"), "no audio file nowhere.wav"),
        ({key: value for key, value in cut_line("a.wav", "b").items() if key != "recording"}, "no recording"),
        (cut_line("a.wav", "b", duration=1.5), "of a recording of 1 s"),
        (cut_line("a.wav", "b", duration=0.0), "of a recording of 1 s"),
        (cut_line("a.wav", "good"), "earlier line"),
    ],
)
def test_a_bad_line_is_left_out_and_listed(tmp_path: Path, line: Any, reason: str) -> None:
    write_wave(tmp_path / "a.wav")
    path = write_lines(
        tmp_path / "x.jsonl.gz", [cut_line("a.wav", "good"), "", line, cut_line("a.wav", "last")]
    )
    found = open_cuts(path)
    assert [cut.id for cut in found.cuts] == ["good", "last"]
    [rejected] = found.rejected
    assert reason in rejected.reason
    assert "line 3" in rejected.reason


def test_a_command_as_audio_is_not_run(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav")
    line = cut_line("a.wav", "b")
    line["recording"]["sources"][0] = {"type": "command", "channels": [0], "source": f"touch {tmp_path}/ran"}
    found = open_cuts(write_lines(tmp_path / "x.jsonl", [cut_line("a.wav", "a"), line]))
    assert "a command, not a file" in found.rejected[0].reason
    assert not (tmp_path / "ran").exists()


def cut_short(path: Path) -> None:
    write_lines(path, [cut_line("a.wav", str(number)) for number in range(100)])
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("x.jsonl.gz", lambda path: path.write_text("{}"), "not a gzip file"),
        ("x.jsonl.gz", cut_short, "not a gzip file, or incomplete"),
        ("x.jsonl.gz", lambda path: write_lines(path, []), "no utterance"),
        ("x.jsonl", lambda path: path.write_text("{}\n{}"), "none of 2 utterances"),
        ("x.txt", lambda path: path.write_text("a"), "neither a manifest"),
        ("x.jsonl", lambda path: None, "no such file"),
        ("x", lambda path: path.mkdir(), "no text and no wav.scp"),
    ],
)
def test_nothing_to_open_is_one_line(tmp_path: Path, name: str, write: Any, reason: str) -> None:
    write_wave(tmp_path / "a.wav")
    write(tmp_path / name)
    with pytest.raises(UserError, match=reason) as caught:
        open_cuts(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_noise_needs_no_text(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "a.wav")
    manifest = write_lines(tmp_path / "cuts.jsonl", [cut_line("a.wav", supervisions=[])])
    assert len(open_cuts(manifest, texts=False).cuts) == 1
    RecordingSet.from_recordings([Recording.from_file(path)]).to_file(tmp_path / "recordings.jsonl")
    [cut] = open_cuts(tmp_path / "recordings.jsonl", texts=False).cuts
    assert cut.load_audio().shape == (1, 16000)
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi" / "wav.scp").write_text("n1 a.wav\n")
    [cut] = open_cuts(tmp_path / "kaldi", texts=False).cuts
    assert (cut.id, cut.supervisions) == ("n1", [])


def test_data_is_looked_for_in_four_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, mine, shared = tmp_path / "repo", tmp_path / "mine", tmp_path / "shared" / "data"
    for folder in (here / "data", mine, shared):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("RETORT_DATA", str(mine))
    for folder in (shared, here / "data", mine, here):  # each goes before those made earlier
        (folder / "set").mkdir()
        assert find_data("set/.") == folder / "set"
        assert find_data(folder / "set") == folder / "set"
    monkeypatch.delenv("RETORT_DATA")
    (here / "set").rmdir()
    assert find_data("set") == here / "data" / "set"


def test_data_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETORT_DATA", "/mine")
    with pytest.raises(UserError) as caught:
        find_data("some/set")
    for place in (
        "tried some/set",
        "/mine/some/set",
        "data/some/set",
        "../shared/data/some/set",
        "set RETORT_DATA",
    ):
        assert place in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        find_data(tmp_path / "set")


def test_a_cut_has_its_range_in_samples(tmp_path: Path) -> None:
    recording = open_recording("r", write_wave(tmp_path / "a.wav", seconds=2.0, rate=44100, channels=2))
    cut = make_cut("u", recording, "HI", "s", 0.33333, 1.0)
    assert cut.start * 44100 == pytest.approx(round(0.33333 * 44100))
    assert cut.load_audio().shape == (1, 44100 - round(0.33333 * 44100))
    assert make_cut("u", recording, "HI", "s", 1.0, 2.05).end == 2.0  # times of others are rounded


@pytest.mark.parametrize(
    ("text", "start", "end", "reason"),
    [
        (" ", 0.0, None, "empty"),
        ("HI", 0.0, 2.2, "ends at 2.2 s"),
        ("HI", 2.0, None, "no audio"),
        ("HI", 1.0, 1.0, "no audio"),
        ("HI", 1.0, 0.5, "no audio"),
        ("HI", -0.5, 0.5, "no audio"),
    ],
)
def test_a_cut_that_cannot_be(
    tmp_path: Path, text: str, start: float, end: float | None, reason: str
) -> None:
    recording = open_recording("r", write_wave(tmp_path / "a.wav", seconds=2.0))
    with pytest.raises(BadUtterance, match=reason):
        make_cut("u", recording, text, "s", start, end)


def test_a_split_is_written_with_what_was_rejected(tmp_path: Path) -> None:
    recording = open_recording("r", write_wave(tmp_path / "a.wav"))
    cuts = CutSet.from_cuts([make_cut(name, recording, "HI", "s") for name in "ab"])
    prepared, out = Prepared(), tmp_path / "new" / "out"
    write_split("dev", CheckedCuts(cuts, [Rejected("c", "its\tline\nbroke")]), out, prepared)
    assert prepared == Prepared(
        {"dev": out / "dev.jsonl.gz"}, {"dev": 2}, {"dev": 2.0}, [Rejected("c", "its\tline\nbroke")]
    )
    assert (out / "dev.rejected.tsv").read_text() == "id\treason\nc\tits line broke\n"
    first = (out / "dev.jsonl.gz").read_bytes()
    write_split("dev", CheckedCuts(cuts, []), out, Prepared())
    assert sorted(path.name for path in out.iterdir()) == ["dev.jsonl.gz"]  # the list of rejected is gone
    assert (out / "dev.jsonl.gz").read_bytes() == first


def test_no_file_of_rejected_for_none(tmp_path: Path) -> None:
    write_rejected([], tmp_path / "x.tsv")
    assert not (tmp_path / "x.tsv").exists()


def test_every_kind_of_corpus_has_its_preparer(tmp_path: Path) -> None:
    assert set(PREPARERS) == {"aishell1", "librispeech", "kaldi", "table", "synthetic"}
    for kind in ("aishell1", "librispeech", "kaldi", "table"):
        with pytest.raises(UserError, match="no such"):
            PREPARERS[kind](tmp_path / "nowhere", tmp_path / "out")
