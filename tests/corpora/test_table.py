from __future__ import annotations

import json
from pathlib import Path

import pytest
from waves import write_wave

from retort.common.errors import UserError
from retort.corpora.cuts import Prepared
from retort.corpora.open_cuts import open_cuts
from retort.corpora.table import prepare


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    for name in "abc":
        write_wave(tmp_path / "wav" / f"{name}.wav")
    return tmp_path


def reported(prepared: Prepared, split: str) -> list[tuple[str, str, str]]:
    cuts = open_cuts(prepared.manifests[split]).cuts
    return [(cut.id, cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in cuts]


ROWS = [("wav/a.wav", "one, two", "s1"), ("wav/b.wav", "你好", "s1"), ("wav/c.wav", 'say "yes"', "")]
CSV = 'audio,text,speaker\nwav/a.wav,"one, two",s1\nwav/b.wav,你好,s1\nwav/c.wav,"say ""yes""",\n'
TSV = "audio\ttext\tspeaker\n" + "".join("\t".join(row) + "\n" for row in ROWS)
JSONL = "\n".join(
    json.dumps(dict(zip(("audio", "text", "speaker"), row)), ensure_ascii=False) for row in ROWS
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", CSV),
        ("t.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("t.CSV", CSV.replace("audio,text", " Audio , TEXT ")),
        ("t.tsv", TSV),
        ("t.jsonl", JSONL + "\n\n"),
    ],
)
def test_formats(waves: Path, name: str, content: str) -> None:
    (waves / name).write_bytes(content.encode())
    prepared = prepare(waves / name, waves / "out")
    assert prepared.rejected == []
    assert reported(prepared, "train") == [("a", "one, two", "s1"), ("b", "你好", "s1"), ("c", 'say "yes"', "c")]
    assert (prepared.utterances, prepared.seconds) == ({"train": 3}, {"train": 3.0})


def test_splits(waves: Path) -> None:
    (waves / "t.csv").write_text(
        "split,audio,text\ntrain,wav/a.wav,x\ntest,wav/b.wav,y\ntrain,wav/c.wav,z\ntest,wav/d.wav,z\n,wav/a.wav,z\n"
    )
    prepared = prepare(waves / "t.csv", waves / "out")
    assert {split: [name for name, _, _ in reported(prepared, split)] for split in prepared.manifests} == {
        "train": ["a", "c"],
        "test": ["b"],
    }
    assert "no audio file" in (waves / "out" / "test.rejected.tsv").read_text()
    assert len(prepared.rejected) == 2


def test_a_split_of_which_nothing_is_left_is_an_error(waves: Path) -> None:
    (waves / "t.csv").write_text("split,audio,text\ntrain,wav/a.wav,x\ntest,wav/d.wav,y\n")
    with pytest.raises(UserError, match="test: none of 1 utterances is usable"):
        prepare(waves / "t.csv", waves / "out")


def test_audio_with_the_table_goes_before_the_working_directory(
    waves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = waves / "here"
    write_wave(here / "wav" / "a.wav", 3.0)
    write_wave(here / "wav" / "d.wav", 2.0)
    monkeypatch.chdir(here)
    (waves / "t.csv").write_text("audio,text\nwav/a.wav,x\nwav/d.wav,y\n")
    prepared = prepare("../t.csv", "out")
    assert [cut.duration for cut in open_cuts(prepared.manifests["train"]).cuts] == [1.0, 2.0]


def test_files_of_one_name_are_named_by_their_paths(tmp_path: Path) -> None:
    for name in ("s1/a.wav", "s2/a.wav", "s2/b.wav", "c.wav", "c.flac", "s 3/e.wav"):
        write_wave(tmp_path / name)
    (tmp_path / "t.csv").write_text(
        "audio,text\ns1/a.wav,x\ns2/a.wav,x\ns2/b.wav,x\nc.wav,x\nc.flac,x\ns 3/e.wav,x\n"
    )
    prepared = prepare(tmp_path / "t.csv", tmp_path / "out")
    assert [name for name, _, _ in reported(prepared, "train")] == ["s1-a", "s2-a", "b", "c.wav", "c.flac", "e"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", "audio,sentence\nwav/a.wav,x\n", r"no column text \(columns found: audio, sentence\)"),
        ("t.csv", "wav/a.wav;x\n", r"no column audio and no column text \(columns found: wav/a.wav;x\)"),
        (
            "t.csv",
            "audio,text,speker\nwav/a.wav,x,s\n",
            r"unknown column speker \(columns found: audio, speker, text\)",
        ),
        ("t.csv", "audio,text,text\nwav/a.wav,x,s\n", "two columns have the same name"),
        ("t.csv", "", "the table is empty"),
        ("t.csv", "audio,text\n", "no utterance"),
        ("t.csv", 'audio,text\nwav/a.wav,"x\n', "line 2: "),
        ("t.csv", "audio,text\nwav/x.wav,x\n", "none of 1 utterances"),
        ("t.jsonl", '{"path": "wav/a.wav", "text": "x"}', r"no column audio \(columns found: path, text\)"),
        ("t.jsonl", '{"audio": "wav/a.wav", "text": "x", "lang": "en"}', "unknown column lang"),
        ("t.xlsx", "x", r"a table is a \.csv, \.tsv, \.jsonl file"),
    ],
)
def test_a_table_that_is_none(waves: Path, name: str, content: str, reason: str) -> None:
    (waves / name).write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        prepare(waves / name, waves / "out")
    assert "\n" not in str(caught.value)
    assert str(waves / name) in str(caught.value)


def test_a_table_of_another_encoding(waves: Path) -> None:
    (waves / "t.csv").write_bytes("audio,text\nwav/a.wav,你好\n".encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8"):
        prepare(waves / "t.csv", waves / "out")


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("t.csv", "wav/b.wav,one, two", "line 3: 3 fields, the header has 2 (quote texts"),
        ("t.csv", "wav/b.wav", "line 3: 1 fields, the header has 2"),
        ("t.csv", ",x", "line 3: audio is empty"),
        ("t.csv", "wav/b.wav,", "transcript is empty"),
        ("t.csv", "t.csv,x", "cannot be read as audio"),
        ("t.csv", "wav/a.wav,again", "line 3: its audio is also on line 2"),
        ("t.jsonl", '{"audio": "wav/b.wav"', "line 2: not valid JSON"),
        ("t.jsonl", '["wav/b.wav", "x"]', "line 2: not a JSON object"),
        ("t.jsonl", '{"audio": "wav/b.wav"}', "line 2: no text"),
        ("t.jsonl", '{"audio": "wav/b.wav", "text": 5}', "line 2: text is not a string"),
    ],
)
def test_a_bad_row_is_left_out_and_listed(waves: Path, name: str, line: str, reason: str) -> None:
    good = "audio,text\nwav/a.wav,x\n" if name == "t.csv" else '{"audio": "wav/a.wav", "text": "x"}\n'
    (waves / name).write_text(f"{good}{line}\n")
    prepared = prepare(waves / name, waves / "out")
    assert prepared.utterances == {"train": 1}
    [rejected] = prepared.rejected
    assert reason in rejected.reason
    assert len((waves / "out" / "train.rejected.tsv").read_text().splitlines()) == 2


def many(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A table of one file a row, of (text, speaker)."""
    lines = ["audio,text,speaker"]
    for number, (text, speaker) in enumerate(rows):
        write_wave(folder / f"{number}.wav", 0.1)
        lines.append(f"{number}.wav,{text},{speaker}")
    (folder / "many.csv").write_text("\n".join(lines))
    return folder / "many.csv"


def test_held_out_speakers_are_in_one_split(tmp_path: Path) -> None:
    table = many(tmp_path, [(f"t{number}", f"s{number % 17}") for number in range(100)])
    prepared = prepare(table, tmp_path / "out", held_out=0.15)
    assert list(prepared.manifests) == ["train", "validation", "test"]
    speakers = {split: {speaker for _, _, speaker in reported(prepared, split)} for split in prepared.manifests}
    assert sum(len(names) for names in speakers.values()) == 17
    assert sum(prepared.utterances.values()) == 100
    assert 8 <= prepared.utterances["validation"] <= 15
    assert 8 <= prepared.utterances["test"] <= 15
    again = prepare(table, tmp_path / "again", held_out=0.15)
    for split, manifest in prepared.manifests.items():
        assert manifest.read_bytes() == again.manifests[split].read_bytes()


def test_without_speakers_held_out_texts_are_in_one_split(tmp_path: Path) -> None:
    table = many(
        tmp_path,
        [(f"Text {number % 20}" if number % 2 else f"text  {number % 20}", "") for number in range(60)],
    )
    prepared = prepare(table, tmp_path / "out", held_out=0.1)
    texts = {
        split: {" ".join(text.casefold().split()) for _, text, _ in reported(prepared, split)}
        for split in prepared.manifests
    }
    assert sum(len(each) for each in texts.values()) == 20
    assert prepared.utterances == {"train": 48, "validation": 6, "test": 6}


def test_a_speaker_who_speaks_most_stays_in_training(tmp_path: Path) -> None:
    table = many(
        tmp_path, [(f"t{number}", "big" if number < 30 else f"s{number % 3}") for number in range(36)]
    )
    prepared = prepare(table, tmp_path / "out", held_out=0.1)
    assert "big" in {speaker for _, _, speaker in reported(prepared, "train")}
    assert min(prepared.utterances.values()) >= 2


def test_what_cannot_be_held_out(tmp_path: Path) -> None:
    table = many(tmp_path, [("same", ""), ("same", ""), ("other", "")])
    with pytest.raises(UserError, match="2 different texts"):
        prepare(table, tmp_path / "out", held_out=0.1)
    with pytest.raises(UserError, match=r"held_out is 0\.5"):
        prepare(table, tmp_path / "out", held_out=0.5)
    (tmp_path / "split.csv").write_text("audio,text,split\n0.wav,x,train\n")
    with pytest.raises(UserError, match="has a column split"):
        prepare(tmp_path / "split.csv", tmp_path / "out", held_out=0.1)
