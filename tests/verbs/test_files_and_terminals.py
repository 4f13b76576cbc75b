"""Where the text of `retort transcribe` goes, and what the other verbs ask of folders and terminals."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from answers import Retort, is_one_line
from retort import cli

DEEP = "[" * 100_000 + "]" * 100_000
COMMAND = [sys.executable, "-m", "retort.cli"]


@pytest.fixture
def waves(corpus: Path, tmp_path: Path) -> list[Path]:
    """Two files of speech in a folder of their own."""
    (tmp_path / "audio").mkdir()
    found = []
    for name, source in zip("ab", sorted((corpus / "test" / "wav").iterdir())):
        found.append(tmp_path / "audio" / f"{name}.wav")
        found[-1].write_bytes(source.read_bytes())
    return found


class TestTranscripts:
    def test_subtitles_of_two_files_are_two_files(
        self, retort: Retort, experiment: Path, waves: list[Path], tmp_path: Path
    ) -> None:
        answer = retort("transcribe", experiment, "--srt", *waves)
        assert answer.code == 0, answer
        written = [wave.with_suffix(".srt") for wave in waves]
        assert answer.out.splitlines() == [str(each) for each in written]
        assert all(each.read_text().startswith("1\n00:00:0") for each in written)
        before = written[0].read_text()
        is_one_line(retort("transcribe", experiment, "--srt", *waves), "a.srt", "already")
        assert written[0].read_text() == before
        assert retort("transcribe", experiment, "--srt", "--overwrite", *waves).code == 0
        assert retort("transcribe", experiment, "--vtt", "--output-dir", "out", *waves).code == 0
        assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["a.vtt", "b.vtt"]

    def test_every_form_in_a_folder(
        self, retort: Retort, experiment: Path, waves: list[Path], tmp_path: Path
    ) -> None:
        plain = retort("transcribe", experiment, waves[0]).out
        retort("transcribe", experiment, "--output-dir", "out", waves[0])
        retort("transcribe", experiment, "--json", "--output-dir", "out", waves[0])
        assert (tmp_path / "out" / "a.txt").read_text() == plain
        assert json.loads((tmp_path / "out" / "a.json").read_text())["text"] == plain.strip()

    def test_two_files_of_one_name(
        self, retort: Retort, experiment: Path, waves: list[Path], tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        twin = tmp_path / "other" / "a.flac"
        soundfile.write(twin, *soundfile.read(waves[0]))
        answer = retort("transcribe", experiment, "--srt", "--output-dir", "out", waves[0], twin)
        is_one_line(answer, str(waves[0]), str(twin))
        assert not (tmp_path / "out").exists()

    def test_standard_input(
        self, retort: Retort, experiment: Path, waves: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def give(content: bytes | None) -> None:
            stream = None if content is None else io.TextIOWrapper(io.BytesIO(content))
            monkeypatch.setattr(sys, "stdin", stream)

        give(waves[0].read_bytes())
        assert retort("transcribe", experiment, "-").out == retort("transcribe", experiment, waves[0]).out
        for content, word in ((b"", "empty"), (None, "empty"), (b"no audio", "cannot be read as audio")):
            give(content)
            is_one_line(retort("transcribe", experiment, "-"), "standard input", word)
        give(waves[0].read_bytes())
        is_one_line(retort("transcribe", experiment, "--srt", "-", waves[1]), "--output-dir")

    def test_addresses_stay_whole(self, retort: Retort, experiment: Path, waves: list[Path]) -> None:
        address = "https://example.org/a.wav"
        answer = retort("transcribe", experiment, address, waves[0])
        assert answer.code == 2
        assert answer.error.startswith(f"retort: {address}: ")
        assert answer.out.startswith(f"{waves[0]}\t")
        for arguments in (
            ("transcribe", address, waves[0]),
            ("evaluate", experiment, address),
            ("evaluate", experiment, waves[0], "--out", address),
            ("prepare", "table", address, "out"),
            ("compare", address, address),
        ):
            is_one_line(retort(*arguments), address)

    def test_names_that_a_terminal_cannot_show(
        self, experiment: Path, waves: list[Path], tmp_path: Path
    ) -> None:
        names = ["音频.wav", os.fsdecode(b"\xff\xfe.wav"), "a\x1b[2J\n.wav"]
        for name in names:
            (tmp_path / name).write_bytes(waves[0].read_bytes())
        script = (
            "import sys, torch; torch.set_num_threads(1); from retort.cli import main\n"
            "sys.argv = ['retort', 'transcribe', *sys.argv[1:]]; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(experiment), *names, str(waves[0])],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            capture_output=True,
        )
        lines = done.stdout.decode("latin-1").splitlines()
        assert done.returncode == 0, done.stderr
        assert [line.split("\t")[0] for line in lines] == [
            "\\u97f3\\u9891.wav",
            "\\xff\\xfe.wav",
            "a\\x1b[2J\\n.wav",
            str(waves[0]),
        ]


@pytest.mark.parametrize("option", ["--threads=0", "--threads=-1", "--threads=99999999999", "--beam=-1"])
def test_numbers_of_commands(retort: Retort, experiment: Path, option: str) -> None:
    for arguments in (("transcribe", experiment, "a.wav"), ("evaluate", experiment, "cuts.jsonl.gz")):
        answer = retort(*arguments, option)
        assert answer.code == 2
        assert "Traceback" not in answer.error


@pytest.mark.parametrize(
    "options",
    [
        *(["--lm=x", "--lm-weight=nan"], ["--lm=x", "--lm-weight=inf"], ["--length-weight=nan"]),
        *(["--nbest=0", "--json"], ["--ctc-weight=nan"], ["--acoustic-scale=-1"], ["--beam=100000"]),
    ],
)
def test_weights_of_commands(retort: Retort, experiment: Path, options: list[str]) -> None:
    is_one_line(retort("transcribe", experiment, "a.wav", *options))


def test_numbers_of_info(retort: Retort) -> None:
    for option in ("--utterance=nan", "--utterance=inf", "--utilisation=nan", "--utilisation=0"):
        answer = retort("info", "demo/cif", "tokenizer.size=30", "--gpu", "A100-40", option)
        assert answer.code == 2
        assert "Traceback" not in answer.error


class TestDeepJson:
    def test_scores(self, retort: Retort, tmp_path: Path) -> None:
        (tmp_path / "d.json").write_text(DEEP)
        is_one_line(retort("compare", "d.json", "d.json"), "d.json", "nested")

    def test_a_line_of_a_table_is_listed(self, retort: Retort, waves: list[Path], tmp_path: Path) -> None:
        row = json.dumps({"audio": str(waves[0]), "text": "HELLO"})
        (tmp_path / "t.jsonl").write_text(f"{row}\n{DEEP}\n")
        assert retort("prepare", "table", "t.jsonl", "out").code == 0
        assert "t.jsonl:2" in (tmp_path / "out" / "train.rejected.tsv").read_text()

    def test_a_line_of_a_manifest_is_listed(self, waves: list[Path], retort: Retort, tmp_path: Path) -> None:
        from retort.corpora.open_cuts import open_cuts

        (tmp_path / "t.csv").write_text(f"audio,text\n{waves[0]},HELLO\n")
        assert retort("prepare", "table", "t.csv", "out").code == 0
        import gzip

        line = gzip.decompress((tmp_path / "out" / "train.jsonl.gz").read_bytes()).decode()
        (tmp_path / "c.jsonl").write_text(f"{line}{DEEP}\n")
        opened = open_cuts(tmp_path / "c.jsonl")
        assert (len(opened.cuts), len(opened.rejected)) == (1, 1)

    def test_a_model(self, retort: Retort, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text(DEEP)
        is_one_line(retort("transcribe", "m", "a.wav"), "nested")


def test_names_with_markup_are_shown(retort: Retort) -> None:
    answer = retort("info", "demo/cif", "name=tiny/[/x] [red]", "tokenizer.size=30")
    assert answer.code == 0
    assert "tiny/[/x] [red]" in answer.out


def test_a_configuration_of_a_later_version(retort: Retort, experiment: Path, tmp_path: Path) -> None:
    for number, (key, value) in enumerate(
        (("format", 99), ("student.encoder.mixture", 3), ("student.encoder.kind", "mamba"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = json.loads((experiment / "model" / "config.json").read_text())
        place = config
        *parts, last = key.split(".")
        for part in parts:
            place = place[part]
        place[last] = value
        (folder / "config.json").write_text(json.dumps(config))
        is_one_line(retort("transcribe", folder, "a.wav"), str(folder), "later version")


class TestPlaces:
    @pytest.fixture
    def closed(self, tmp_path: Path) -> str:
        """A path below a file: nobody, not even root, can write there."""
        (tmp_path / "file").write_text("")
        return "file/folder"

    def test_before_the_work(
        self, retort: Retort, experiment: Path, closed: str, corpus: Path, waves: list[Path]
    ) -> None:
        test = corpus / "test"
        is_one_line(retort("prepare", "kaldi", test, closed), closed)
        is_one_line(retort("evaluate", experiment, test, "--out", closed), closed)
        is_one_line(retort("evaluate", experiment, test, "--results", f"{closed}/r.json"), closed)
        is_one_line(retort("tune", experiment, test, "--out", closed), closed)
        is_one_line(retort("report", experiment, "--out", closed), closed)
        is_one_line(retort("release", experiment, closed, "--licence", "MIT", "--language", "en"), closed)
        is_one_line(retort("transcribe", experiment, waves[0], "--output-dir", closed), closed)

    def test_nothing_is_left(self, retort: Retort, experiment: Path, tmp_path: Path) -> None:
        is_one_line(retort("evaluate", experiment, "nowhere", "--out", "new"), "nowhere")
        is_one_line(retort("prepare", "table", "nowhere.csv", "new"), "nowhere.csv")
        assert not (tmp_path / "new").exists()

    def test_a_folder_in_the_place_of_experiments(self, retort: Retort, tmp_path: Path) -> None:
        (tmp_path / "exp").write_text("")
        is_one_line(retort("train", "demo/cif"), "exp")


class TestStreams:
    def test_the_systems_refusal_is_one_line(self, retort: Retort, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise OSError(30, "Read-only file system", "exp/a")

        monkeypatch.setattr(cli, "app", refuse)
        is_one_line(retort("info"), "exp/a", "Read-only file system")

    def test_a_reader_that_goes_away(self) -> None:
        process = subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() in (0, 1)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_disk(self) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1

    def test_closed_streams(self, tmp_path: Path) -> None:
        line = f"exec {sys.executable} -m retort.cli compare a.json b.json"
        for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
            done = subprocess.run(["bash", "-c", f"{line} {closed}"], cwd=tmp_path, capture_output=True)
            assert done.returncode == 2
            assert b"Traceback" not in done.stdout + done.stderr
            assert not done.stdout


def test_no_home_is_needed() -> None:
    script = (
        "import os, pwd\n"
        "def nobody(*_): raise KeyError\n"
        "pwd.getpwuid = nobody; os.environ.pop('HOME', None)\n"
        "import retort; from pathlib import Path; import lhotse; print(Path.home())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "/nonexistent\n"
    assert not done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_answers(experiment: Path, waves: list[Path]) -> None:
    script = (
        "import os, sys, time, torch, retort\n"
        "torch.set_num_threads(2); model = retort.load(sys.argv[1]); model.transcribe(sys.argv[2])\n"
        "child = os.fork()\n"
        "if child == 0: model.transcribe(sys.argv[2]); os._exit(0)\n"
        "for _ in range(600):\n"
        "    if os.waitpid(child, os.WNOHANG)[0]: sys.exit(0)\n"
        "    time.sleep(0.1)\n"
        "os.kill(child, 9); sys.exit(1)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script, str(experiment), str(waves[0])], env=environment)
    assert done.returncode == 0


def test_samples_of_python(experiment: Path, waves: list[Path]) -> None:
    from retort import load

    asr = load(experiment)
    samples = soundfile.read(waves[0], dtype="float32")[0]
    loud = samples / np.abs(samples).max()
    assert asr.transcribe(np.round(loud * 32767).astype(np.int16)).text == asr.transcribe(loud[:, None]).text
    assert asr.transcribe(os.fsencode(waves[0])).text == asr.transcribe_samples(samples.tolist()).text
