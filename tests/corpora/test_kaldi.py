from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from waves import write_wave

from retort.common.errors import UserError
from retort.corpora.kaldi import prepare, read_kaldi
from retort.corpora.open_cuts import open_cuts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three utterances of two speakers, the audio next to the folder."""
    folder = tmp_path / "corpus" / "train"
    folder.mkdir(parents=True)
    for name in "abc":
        write_wave(folder.parent / "audio" / f"{name}.wav")
    (folder / "wav.scp").write_text("".join(f"{name} audio/{name}.wav\n" for name in "abc"))
    (folder / "text").write_text("a ONE\nb TWO  WORDS\nc\tTHREE\n")
    (folder / "utt2spk").write_text("a s1\nb s1\nc s2\n")
    return folder


def append(path: Path, content: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def test_utterances_with_text_and_speaker(folder: Path) -> None:
    found = read_kaldi(folder)
    reported = [(cut.id, cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in found.cuts]
    assert reported == [("a", "ONE", "s1"), ("b", "TWO  WORDS", "s1"), ("c", "THREE", "s2")]
    assert found.rejected == []
    for cut in found.cuts:
        assert os.path.isabs(cut.recording.sources[0].source)
        assert cut.load_audio().shape == (1, 16000)


def test_without_utt2spk_everyone_is_alone(folder: Path) -> None:
    (folder / "utt2spk").unlink()
    assert [cut.supervisions[0].speaker for cut in read_kaldi(folder).cuts] == ["a", "b", "c"]


def test_the_folder_goes_before_its_parent_and_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wave(tmp_path / "audio" / "d.wav")
    write_wave(tmp_path / "audio" / "a.wav", 2.0)
    write_wave(folder / "audio" / "b.wav", 3.0)
    append(folder / "wav.scp", "d audio/d.wav\n")
    append(folder / "text", "d FOUR\n")
    append(folder / "utt2spk", "d s2\n")
    assert {cut.id: cut.duration for cut in read_kaldi("corpus/train").cuts} == {
        "a": 1,
        "b": 3,
        "c": 1,
        "d": 1,
    }


def test_segments(folder: Path) -> None:
    (folder / "segments").write_text("u1 a 0.0 0.25\nu2 a 0.25 -1\nu3 b 0.5 1.05\n")
    (folder / "text").write_text("u1 X\nu2 Y\nu3 Z\n")
    (folder / "utt2spk").write_text("u1 s\nu2 s\nu3 s\n")
    found = read_kaldi(folder)
    assert [(cut.id, cut.start, cut.end) for cut in found.cuts] == [
        ("u1", 0, 0.25),
        ("u2", 0.25, 1),
        ("u3", 0.5, 1),
    ]
    assert found.rejected == []
    assert [cut.load_audio().shape[1] for cut in found.cuts] == [4000, 12000, 8000]


@pytest.mark.parametrize(
    ("file", "line", "name", "reason"),
    [
        ("text", "d FOUR", "d", "not in wav.scp"),
        ("text", "a AGAIN", "a", "text line 4: duplicates line 1"),
        ("text", b"d \xff\xfe", "d", "text line 4: not UTF-8"),
        ("wav.scp", "d audio/a.wav", "d", "no line in text"),
        ("wav.scp", "a audio/c.wav", "a", "wav.scp line 4: duplicates line 1"),
        ("wav.scp", "d", "d", "wav.scp line 4: nothing after the id"),
        ("utt2spk", "a s3", "a", "utt2spk line 4: duplicates line 1"),
    ],
)
def test_a_bad_line_costs_its_utterance_only(
    folder: Path, file: str, line: str | bytes, name: str, reason: str
) -> None:
    append(folder / file, line)
    found = read_kaldi(folder)
    assert [cut.id for cut in found.cuts] == ["a", "b", "c"]
    [rejected] = found.rejected
    assert rejected.id == name
    assert reason in rejected.reason


@pytest.mark.parametrize(
    ("text", "speaker", "audio", "reason"),
    [
        ("d", "d s1", "audio/a.wav", "transcript is empty"),
        ("d FOUR", "", "audio/a.wav", "no speaker"),
        ("d FOUR", "d", "audio/a.wav", "utt2spk line 4: nothing after"),
        ("d FOUR", "d s1", "audio/d.wav", "no audio file audio/d.wav"),
        ("d FOUR", "d s1", "broken.wav", "cannot be read as audio"),
        ("d FOUR", "d s1", "empty.wav", "empty"),
        ("d FOUR", "d s1", "", "wav.scp line 4: nothing after"),
    ],
)
def test_a_bad_utterance_is_listed(folder: Path, text: str, speaker: str, audio: str, reason: str) -> None:
    (folder / "broken.wav").write_text("no audio in here, truly none")
    (folder / "empty.wav").touch()
    append(folder / "text", text + "\n")
    append(folder / "utt2spk", speaker + "\n")
    append(folder / "wav.scp", f"d {audio}\n")
    found = read_kaldi(folder)
    assert [cut.id for cut in found.cuts] == ["a", "b", "c"]
    [rejected] = found.rejected
    assert rejected.id == "d"
    assert reason in rejected.reason


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        ("a 0.5 1.5", "ends at 1.5 s"),
        ("a 0.5 0.5", "no audio"),
        ("a 0.5 0.2", "no audio"),
        ("a -0.5 0.2", "no audio"),
        ("x 0.0 0.2", "x is not in wav.scp"),
        ("a 0.0", "is not 'RECORDING START END'"),
        ("a zero one", "is not 'RECORDING START END'"),
        ("a 0.0 nan", "is not 'RECORDING START END'"),
    ],
)
def test_a_bad_segment_is_listed(folder: Path, segment: str, reason: str) -> None:
    (folder / "segments").write_text(f"u1 b 0.0 0.5\nu2 {segment}\n")
    (folder / "text").write_text("u1 X\nu2 Y\nu3 Z\n")
    (folder / "utt2spk").write_text("u1 s\nu2 s\nu3 s\n")
    found = read_kaldi(folder)
    assert [cut.id for cut in found.cuts] == ["u1"]
    reasons = {entry.id: entry.reason for entry in found.rejected}
    assert reasons.keys() == {"u2", "u3"}
    assert reason in reasons["u2"]
    assert reasons["u3"] == "in text, but not in segments"


def test_windows_line_ends_a_mark_and_odd_spaces(folder: Path) -> None:
    (folder / "text").write_bytes("\ufeffa ONE\u2028TWO\r\n\r\nb 你\u3000好\r\nc THREE".encode())
    assert [cut.supervisions[0].text for cut in read_kaldi(folder).cuts] == [
        "ONE\u2028TWO",
        "你\u3000好",
        "THREE",
    ]


def test_nothing_left_is_an_error(folder: Path) -> None:
    (folder / "wav.scp").write_text("a x.wav\nb y.wav\nc z.wav\n")
    with pytest.raises(
        UserError, match=r"none of 3 utterances is usable; the first is a: no audio file x\.wav"
    ):
        read_kaldi(folder)


@pytest.mark.parametrize("name", ["text", "wav.scp"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"it has no {name}"):
        read_kaldi(folder)


def test_a_folder_of_splits_is_not_one_split(folder: Path) -> None:
    with pytest.raises(UserError, match="Choose one of its folders: train"):
        open_cuts(folder.parent)


def test_a_command_is_refused_with_the_line_that_runs_it(folder: Path, tmp_path: Path) -> None:
    odd = folder.parent / "it's a set"
    folder.rename(odd)
    source = folder.parent / "audio"
    (odd / "wav.scp").write_text(f"a cat '{source}/a.wav' |\nb audio/b.wav\nc cat < {source}/c.wav | cat |\n")
    with pytest.raises(UserError, match="2 of 3 entries are commands, the first is a") as caught:
        read_kaldi(odd)
    assert "\n" not in str(caught.value)
    line = caught.value.remedy.split(": ", 1)[1]
    subprocess.run(["bash", "-c", line], check=True, cwd=tmp_path)
    found = read_kaldi(odd)
    assert [cut.id for cut in found.cuts] == ["a", "b", "c"]
    assert [cut.load_audio().shape[1] for cut in found.cuts] == [16000] * 3
    assert len(list(odd.glob("wav.*/wav.scp.piped"))) == 1


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_that_line_reads_every_line_and_stays_in_the_folder(folder: Path, tmp_path: Path, end: str) -> None:
    source = folder.parent / "audio"
    names = ["../../out", "a/b", "$(touch${IFS}evil)"]
    lines = [f"{name} cat {source}/a.wav |" for name in names]
    (folder / "text").write_text("\n".join(f"{name} ONE" for name in names))
    (folder / "wav.scp").write_bytes((end or "\n").join(lines).encode() + end.encode())
    (folder / "utt2spk").unlink(missing_ok=True)
    outside = {path for path in folder.parent.parent.rglob("*") if folder not in path.parents}
    with pytest.raises(UserError) as caught:
        read_kaldi(folder)
    subprocess.run(["bash", "-c", caught.value.remedy.split(": ", 1)[1]], check=True, cwd=tmp_path)
    assert [cut.id for cut in read_kaldi(folder).cuts] == names
    assert {path for path in folder.parent.parent.rglob("*") if folder not in path.parents} == outside


def test_prepare_one_folder(folder: Path, tmp_path: Path) -> None:
    append(folder / "text", "d FOUR\n")
    prepared = prepare(folder, tmp_path / "out")
    assert prepared.manifests == {"train": tmp_path / "out" / "train.jsonl.gz"}
    assert (prepared.utterances, prepared.seconds) == ({"train": 3}, {"train": 3.0})
    assert [entry.id for entry in prepared.rejected] == ["d"]
    assert (tmp_path / "out" / "train.rejected.tsv").read_text().splitlines()[1].startswith("d\t")
    assert [cut.id for cut in open_cuts(prepared.manifests["train"]).cuts] == ["a", "b", "c"]


def test_prepare_a_folder_of_folders(folder: Path, tmp_path: Path) -> None:
    dev = folder.parent / "dev"
    dev.mkdir()
    (dev / "wav.scp").write_text("x audio/a.wav\n")
    (dev / "text").write_text("x ONE\n")
    prepared = prepare(folder.parent, tmp_path / "out")
    assert prepared.utterances == {"dev": 1, "train": 3}
    assert prepared.rejected == []


def test_prepare_what_is_no_kaldi_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a Kaldi folder"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")


def test_real_data_where_it_is(tmp_path: Path) -> None:
    root = Path(os.environ.get("RETORT_DATA", "../shared/data"))
    if not (root / "aishell1_S0150" / "dev").is_dir():
        pytest.skip("no data")
    found = read_kaldi(root / "aishell1_S0150" / "dev")
    assert len(found.cuts) == 60
    assert found.rejected == []
    assert {cut.supervisions[0].speaker for cut in found.cuts} == {"S0150"}
