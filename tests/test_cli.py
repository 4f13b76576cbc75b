from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from retort import cli
from retort.corpora.opening import open_cuts
from retort.evaluation import read_score
from retort.evaluation.results import read_results

MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Say = Callable[..., np.ndarray]


class Answer(NamedTuple):
    code: int
    out: str
    error: str


Retort = Callable[..., Answer]


def run_main(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> Answer:
    monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
    capsys.readouterr()
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0
    out, error = capsys.readouterr()
    assert isinstance(code, int)
    return Answer(code, out, error)


@pytest.fixture
def retort(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Retort:
    """`retort(argument, ...)`: the command, run in `tmp_path`; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run_main(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def experiment(recipe_text: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained by the library for the verbs that only read one."""
    from retort.recipe import load_recipe
    from retort.training.run import train

    root = tmp_path_factory.mktemp("trained")
    (root / "tiny.yaml").write_text(recipe_text("tiny"))
    recipe = load_recipe(str(root / "tiny.yaml"), ["training.steps=40", "training.evaluate_steps=40"])
    return train(recipe, root, lambda *_: None, lambda *_: None).folder


def is_one_line(answer: Answer, *words: str) -> None:
    """A user's mistake: exit code 2, one line on stderr that names it, no traceback."""
    assert answer.code == 2, answer
    assert answer.error.startswith("retort: ")
    assert answer.error.endswith("\n")
    assert answer.error.count("\n") == 1, answer.error
    for word in words:
        assert word in answer.error, answer.error


def test_from_a_kaldi_folder_to_a_scored_model(
    retort: Retort, write_recipe: WriteRecipe, corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe()
    answer = retort("train", recipe, "seed=3", "--results", "results/tiny.json")
    assert (answer.code, answer.error) == (0, "")
    assert "CER" in answer.out
    assert (tmp_path / "exp/tiny/model/model.safetensors").is_file()
    (entry,) = read_results(tmp_path / "results/tiny.json")
    promised = "system recipe seed split steps params cer wer train_seconds device commit"
    assert entry.keys() >= set(promised.split())
    assert (entry["system"], entry["recipe"], entry["seed"], entry["steps"]) == ("cif", "tiny", 3, 12)
    score = read_score(tmp_path / f"exp/tiny/evaluation/{corpus.name}-test/score.json")
    assert entry["cer"] == score.cer
    again = retort("train", recipe, "seed=3", "--results", "results/tiny.json")
    assert again.code == 0
    assert len(read_results(tmp_path / "results/tiny.json")) == 1
    info = retort("info", recipe, f"tokenizer.size={open_size(tmp_path / 'exp/tiny')}")
    assert f"{entry['params']:,}" in info.out


def open_size(experiment: Path) -> int:
    from retort.text.opening import open_tokenizer

    return open_tokenizer(experiment / "model" / "tokenizer").size


class TestEvaluateAndCompare:
    def test_another_kaldi_folder(
        self, retort: Retort, experiment: Path, tmp_path: Path, make_corpus: MakeCorpus
    ) -> None:
        data = make_corpus(tmp_path / "elsewhere" / "new", 6, seed=500)
        (data / "text").write_text((data / "text").read_text() + "ghost ABC\n")
        answer = retort("evaluate", experiment, data)
        assert (answer.code, answer.error) == (0, "")
        assert "6 utterances, 3 speakers" in answer.out
        assert "1 utterances could not be used" in answer.out
        folder = experiment / "evaluation" / "elsewhere-new"
        assert len((folder / "hyp.jsonl").read_text().splitlines()) == 6
        assert "ghost" in (folder / "rejected.tsv").read_text()

    def test_a_beam_search(self, retort: Retort, experiment: Path, corpus: Path) -> None:
        answer = retort("evaluate", experiment, corpus / "test", "--beam", 3, "--nbest", 2)
        assert (answer.code, answer.error) == (0, "")
        hypotheses = experiment / "evaluation" / f"{corpus.name}-test-beam3" / "hyp.jsonl"
        lines = [json.loads(line) for line in hypotheses.read_text().splitlines()]
        assert len(lines) == 6
        assert all(line["nbest"][0]["text"] == line["hypothesis"] for line in lines)

    def test_two_scores(self, retort: Retort, experiment: Path, corpus: Path, tmp_path: Path) -> None:
        retort("evaluate", experiment, corpus / "test")
        first = experiment / "evaluation" / f"{corpus.name}-test" / "score.json"
        answer = retort("compare", first, first)
        assert (answer.code, answer.error) == (0, "")
        assert "+0.00%" in answer.out
        assert "6 utterances, 3 speakers" in answer.out
        retort("evaluate", experiment, corpus / "validation")
        second = experiment / "evaluation" / f"{corpus.name}-validation" / "score.json"
        is_one_line(retort("compare", first, second))
        for content in ("{", "[]", '{"cer": 1}', ""):
            (tmp_path / "broken.json").write_text(content)
            is_one_line(retort("compare", first, tmp_path / "broken.json"), "broken.json")
        is_one_line(retort("compare", first, tmp_path / "nowhere.json"), "nowhere.json")

    def test_another_folder(self, retort: Retort, experiment: Path, corpus: Path, tmp_path: Path) -> None:
        answer = retort("evaluate", experiment, corpus / "test", "--out", "elsewhere")
        assert (answer.code, answer.error) == (0, "")
        assert (tmp_path / "elsewhere" / "evaluation" / f"{corpus.name}-test" / "score.json").is_file()
        assert not (tmp_path / "exp").exists()


class TestLanguageModels:
    def test_from_tuning_to_the_gap(
        self, retort: Retort, experiment: Path, corpus: Path, tmp_path: Path, tone_masked: Path
    ) -> None:
        models = ("--beam", 3, "--rescore", tone_masked, "--rescore-case", "lower")
        answer = retort("tune", experiment, corpus / "validation", *models)
        assert (answer.code, answer.error) == (0, "")
        assert "rescore weight" in answer.out
        assert "report the errors on other data" in answer.out
        base = f"{corpus.name}-validation-beam3+rescore.{tone_masked.name}"
        tuned = experiment / "tuning" / base / "tuned.json"
        assert str(tuned) in answer.out
        answer = retort("evaluate", experiment, corpus / "test", "--tuned", tuned, "--results", "r.json")
        assert (answer.code, answer.error) == (0, "")
        assert "parameters at run time: student" in answer.out
        answer = retort("evaluate", experiment, corpus / "test", "--results", "r.json")
        first, second = read_results(tmp_path / "r.json")
        assert (first["system"], second["system"]) == ("cif+rescore", "cif")
        assert first["params"] > second["params"]  # type: ignore[operator]
        answer = retort("gap", corpus / "test", "--student", experiment, "--distilled", experiment)
        assert (answer.code, answer.error) == (0, "")
        assert "language model's gain" in answer.out
        weights = ("--rescore-weight", 0.5, "--length-weight", 0.1)
        found = retort("transcribe", experiment, *models, *weights, corpus / "test/wav/test-000.wav")
        assert (found.code, found.error) == (0, "")

    def test_mistakes(self, retort: Retort, experiment: Path, corpus: Path, tone_bert: Path) -> None:
        test = corpus / "test"
        is_one_line(retort("evaluate", experiment, test, "--lm", "x"), "--lm without --lm-weight", "tune")
        is_one_line(retort("evaluate", experiment, test, "--tuned", "x"), "x: cannot be read")
        both = retort("evaluate", experiment, test, "--tuned", "x", "--lm-weight", 1)
        is_one_line(both, "--tuned and --lm-weight")
        is_one_line(
            retort("evaluate", experiment, test, "--lm", "x", "--lm-weight", 1), "x", "language model"
        )
        headless = ("--beam", 2, "--rescore", tone_bert, "--rescore-weight", 1)
        is_one_line(retort("evaluate", experiment, test, *headless), "without a language-modelling head")
        wave = test / "wav/test-000.wav"
        is_one_line(retort("transcribe", experiment, *headless, wave), "without a language-modelling head")
        is_one_line(retort("tune", experiment, test), "nothing to tune")
        is_one_line(retort("tune", experiment, test, "--lm", "x", "--measure", "ter"), "--measure is 'ter'")
        is_one_line(retort("gap", test, "--student", "exp/a", "--distilled", "exp/b"), "exp/a")


class TestRelease:
    TERMS = ("--licence", "MIT", "--language", "en", "--data-note", "tones", "--data-note", "more tones")

    def test_a_release_in_use(
        self, retort: Retort, experiment: Path, corpus: Path, tmp_path: Path, say: Say
    ) -> None:
        answer = retort("release", experiment, "models/tones", *self.TERMS)
        assert (answer.code, answer.error) == (0, "")
        assert "models/tones: 0.1 MB" in answer.out
        assert "absolute paths" in answer.out
        card = (tmp_path / "models/tones/README.md").read_text()
        assert "- tones\n- more tones\n" in card
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")}
        score = tmp_path / f"exp/models/tones/evaluation/{corpus.name}-test/score.json"
        told = read_score(score)
        score.unlink()
        answer = retort("evaluate", "models/tones", corpus / "test")
        assert (answer.code, answer.error) == (0, "")
        assert read_score(score).utterances == told.utterances
        (rates,) = (line for line in answer.out.splitlines() if "CER" in line)
        (row,) = (line for line in card.splitlines() if line.startswith(f"| {corpus.name}/test |"))
        assert all(part in row for part in re.findall(r"[\d.]+%", rates))
        soundfile.write(tmp_path / "a.flac", say("abc def"), 16000)
        heard = retort("transcribe", "models/tones", "a.flac")
        assert (heard.code, heard.error) == (0, "")
        assert retort("report", "models/tones").code == 0
        assert (tmp_path / "exp/models/tones/report.html").is_file()
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")} == before

    def test_a_large_one_is_told(
        self, retort: Retort, experiment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("retort.release.release.SMALL", 1000)
        assert "more than 0 MB" in retort("release", experiment, "models/large", *self.TERMS).out

    def test_mistakes(self, retort: Retort, experiment: Path, tmp_path: Path) -> None:
        is_one_line(retort("release", "exp/nowhere", "models/x", *self.TERMS), "exp/nowhere")
        is_one_line(retort("release", experiment, experiment, *self.TERMS), "other things than a release")
        is_one_line(
            retort("release", experiment, "x", "--licence", "MIT", "--language", "English"), "English"
        )
        missing = retort("release", experiment, "models/x")
        assert missing.code == 2
        assert "Traceback" not in missing.error
        assert not (tmp_path / "models").exists()


class TestTranscribe:
    @pytest.fixture
    def wave(self, tmp_path: Path, say: Say) -> Path:
        samples = say("abc def gh", rate=22050)
        soundfile.write(tmp_path / "a.flac", np.stack([samples, samples], 1), 22050)
        return tmp_path / "a.flac"

    def test_text(self, retort: Retort, experiment: Path, wave: Path) -> None:
        one = retort("transcribe", experiment, wave)
        assert (one.code, one.error) == (0, "")
        assert one.out.strip()
        two = retort("transcribe", experiment, wave, wave)
        assert two.out == f"{wave}\t{one.out}" * 2

    def test_json(self, retort: Retort, experiment: Path, wave: Path) -> None:
        answer = retort("transcribe", experiment / "model", "--json", wave, wave)
        found = [json.loads(line) for line in answer.out.splitlines()]
        assert len(found) == 2
        assert found[0] == found[1]
        assert found[0].keys() == {"file", "text", "words", "tokens"}
        assert len(found[0]["tokens"]) > 0
        seconds = soundfile.info(wave).duration
        for unit in ("words", "tokens"):
            times = [time for each in found[0][unit] for time in (each["start"], each["end"])]
            assert times == sorted(times)
            assert all(0.0 <= time <= seconds + 1e-6 for time in times)
            assert all(0.0 <= each["confidence"] <= 1.0 for each in found[0][unit])
        text = "".join(each["text"] for each in found[0]["tokens"])
        assert " ".join(text.split()) == found[0]["text"] == " ".join(w["text"] for w in found[0]["words"])

    def test_readings_of_a_beam_search(self, retort: Retort, experiment: Path, wave: Path) -> None:
        answer = retort("transcribe", experiment, "--json", "--beam", 4, "--nbest", 3, wave)
        assert (answer.code, answer.error) == (0, "")
        found = json.loads(answer.out)
        assert found["nbest"][0]["text"] == found["text"]
        assert 2 <= len({each["text"] for each in found["nbest"]}) == len(found["nbest"]) <= 3
        plain = retort("transcribe", experiment, "--beam", 4, wave)
        assert plain.out.strip() == found["text"]
        is_one_line(retort("transcribe", experiment, "--beam", 4, "--nbest", 3, wave), "--json")
        is_one_line(retort("transcribe", experiment, "--json", "--nbest", 3, wave), "beam of at least 3")
        is_one_line(retort("transcribe", experiment, "--beam", 0, wave), "beam is 0")
        is_one_line(retort("evaluate", experiment, "nowhere", "--beam", 0), "beam is 0")

    def test_subtitles(self, retort: Retort, experiment: Path, wave: Path) -> None:
        srt, vtt = (retort("transcribe", experiment, form, wave).out for form in ("--srt", "--vtt"))
        assert srt.startswith("1\n00:00:0")
        assert " --> 00:00:0" in srt
        assert vtt.startswith("WEBVTT\n")
        is_one_line(retort("transcribe", experiment, "--srt", "--vtt", wave), "--srt")

    def test_a_bad_file_is_told_and_the_others_go_on(
        self, retort: Retort, experiment: Path, wave: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "text.wav").write_text("no audio")
        soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
        soundfile.write(tmp_path / "short.wav", np.full(200, 0.1) * (-1) ** np.arange(200), 16000)
        names = ("text.wav", "silent.wav", "short.wav", "missing.wav")
        answer = retort("transcribe", experiment, *names[:2], wave, *names[2:])
        assert answer.code == 2
        assert answer.out.startswith(f"{wave}\t")
        lines = answer.error.splitlines()
        assert len(lines) == 4
        for name, line in zip(names, lines):
            assert line.startswith(f"retort: {name}: ")
            is_one_line(retort("transcribe", experiment, name), name)


class TestInfo:
    def test_the_published_sizes(self, retort: Retort) -> None:
        assert "47,208,587" in retort("info", "aishell1/cif").out
        hkd = retort("info", "aishell1/hkd").out
        assert "47,208,587" in hkd
        assert "47,603,339" in hkd

    def test_what_it_asks_of_a_gpu(self, retort: Retort, write_recipe: WriteRecipe) -> None:
        recipe = write_recipe()
        settings = ("tokenizer.size=13", "training.steps=3000000000", "training.precision=bf16")
        shown = retort("info", recipe, *settings, "--gpu", "V100", "--utterance", 5).out
        assert "tiny on V100, an estimate" in shown
        assert "12 s in utterances of 5 s" in shown
        assert "if 10% of 125 TFLOP/s are used" in shown
        assert "set training.precision=fp16" in shown
        (hours,) = re.findall(r"3,000,000,000 updates: ([\d.,]+) h", shown)
        twice = retort(
            "info", recipe, *settings, "--gpu", "32:125", "--utterance", 5, "--utilisation", 0.2
        ).out
        (half,) = re.findall(r"3,000,000,000 updates: ([\d.,]+) h", twice)
        assert float(hours) == pytest.approx(2 * float(half), abs=0.16) != 0.0
        assert "fp16" not in twice
        assert "up to about" not in twice
        small = retort("info", recipe, *settings, "--gpu", "0.002:125").out
        (most,) = re.findall(r"batches.seconds up to about (\d+)", small)
        assert 0 < int(most) < 12
        is_one_line(retort("info", recipe, *settings, "--gpu", "A200"), "--gpu A200", "H100")


class TestPrepare:
    def check(self, answer: Answer, out: Path, **utterances: int) -> None:
        assert (answer.code, answer.error) == (0, "")
        for name, count in utterances.items():
            path = out / f"{name.replace('_', '-')}.jsonl.gz"
            assert len(open_cuts(path).cuts) == count
            assert path.name in answer.out
            assert f"{count} utterances" in answer.out

    def noise(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 8000), 16000)

    def test_kaldi(self, retort: Retort, corpus: Path, tmp_path: Path) -> None:
        answer = retort("prepare", "kaldi", corpus, "out")
        self.check(answer, tmp_path / "out", train=24, validation=6, test=6)

    def test_table(self, retort: Retort, tmp_path: Path) -> None:
        rows = ["audio,text,speaker,split"]
        for index in range(6):
            self.noise(tmp_path / f"{index}.wav")
            rows.append(f"{index}.wav,hello there,s{index},{'test' if index > 3 else 'train'}")
        (tmp_path / "own.csv").write_text("\n".join([*rows, "gone.wav,hello,s1,train"]))
        answer = retort("prepare", "table", "own.csv", "out")
        self.check(answer, tmp_path / "out", train=4, test=2)
        assert "1 utterances left out" in answer.out
        assert "gone" in (tmp_path / "out" / "train.rejected.tsv").read_text()
        (tmp_path / "plain.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows))
        held = retort("prepare", "table", "plain.csv", "held", "--held-out", "0.2")
        self.check(held, tmp_path / "held", train=4, validation=1, test=1)

    def test_aishell1(self, retort: Retort, tmp_path: Path) -> None:
        corpus, lines = tmp_path / "data_aishell", []
        for part, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
            self.noise(corpus / "wav" / part / speaker / f"BAC009{speaker}W0122.wav")
            lines.append(f"BAC009{speaker}W0122 而 对 楼市\n")
        (corpus / "transcript").mkdir()
        (corpus / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")
        answer = retort("prepare", "aishell1", corpus, "out")
        self.check(answer, tmp_path / "out", train=1, dev=1, test=1)

    def test_librispeech(self, retort: Retort, tmp_path: Path) -> None:
        chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
        self.noise(chapter / "84-121123-0000.flac")
        (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n")
        answer = retort("prepare", "librispeech", tmp_path / "LibriSpeech", "out")
        self.check(answer, tmp_path / "out", dev_clean=1)

    def test_synthetic(self, retort: Retort, tmp_path: Path) -> None:
        pytest.importorskip("espeakng_loader")
        sentences = ["the cat sat", "a dog ran home", "nobody came", "it rained", "we sang"]
        (tmp_path / "text.txt").write_text("\n".join(sentences))
        answer = retort("prepare", "synthetic", "text.txt", "out")
        self.check(answer, tmp_path / "out", train=3, validation=1, test=1)


class TestMistakes:
    def test_recipes(self, retort: Retort, write_recipe: WriteRecipe, tmp_path: Path) -> None:
        recipe = write_recipe()
        is_one_line(retort("train", "aishell1/cfi"), "aishell1/cfi", "Did you mean aishell1/cif?")
        is_one_line(retort("train", "nowhere.yaml"), "nowhere.yaml")
        is_one_line(retort("train", recipe, "training.stesp=3"), "training.stesp", "Did you mean 'steps'?")
        is_one_line(retort("train", recipe, "training.steps=many"), "training.steps")
        is_one_line(retort("train", recipe, "student.encoder=3"), "student.encoder")
        is_one_line(retort("train", recipe, "seed"), "seed")
        is_one_line(retort("train", recipe, "student.kind=whisper"), "student.kind", "Choose one of")
        (tmp_path / "broken.yaml").write_text("name: [x\n")
        is_one_line(retort("info", "broken.yaml"), "broken.yaml")
        (tmp_path / "key.yaml").write_text("name: x\nstuden: {kind: cif}\n")
        is_one_line(retort("info", "key.yaml"), "studen", "key.yaml")
        is_one_line(retort("info", recipe), "tokenizer.size")
        assert not (tmp_path / "exp").exists()

    def test_data(self, retort: Retort, write_recipe: WriteRecipe, tmp_path: Path) -> None:
        recipe = write_recipe()
        is_one_line(retort("train", recipe, "data.train=[no/such/folder]"), "no/such/folder", "RETORT_DATA")
        (tmp_path / "broken.jsonl").write_text("{not a line\n")
        is_one_line(retort("train", recipe, "data.train=[broken.jsonl]"), "broken.jsonl:1", "not valid JSON")
        (tmp_path / "empty.jsonl").write_text("")
        is_one_line(retort("train", recipe, "data.train=[empty.jsonl]"), "empty.jsonl")
        (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
        is_one_line(retort("train", recipe, "data.train=[cut.jsonl.gz]"), "cut.jsonl.gz")

    def test_models(
        self, retort: Retort, experiment: Path, corpus: Path, tmp_path: Path, write_recipe: WriteRecipe
    ) -> None:
        is_one_line(retort("evaluate", "exp/nowhere", corpus / "test"), "exp/nowhere")
        is_one_line(retort("transcribe", "exp/nowhere", "a.wav"), "exp/nowhere")
        is_one_line(retort("evaluate", experiment, "no/such/data"), "no/such/data")
        extra = (
            "teachers: {bert: {model: ./no-such-model}}\n"
            "distill: [{tap: acoustic, teacher: bert, loss: contrastive}]\n"
        )
        is_one_line(retort("train", write_recipe("taught", extra)), "no-such-model")
        is_one_line(retort("train", write_recipe("start"), "training.init=exp/nowhere"), "exp/nowhere")

    def test_corpora(self, retort: Retort, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "wav.scp").write_text("a sph2pipe -f wav a.sph |\n")
        (tmp_path / "data" / "text").write_text("a HELLO\n")
        is_one_line(retort("prepare", "kaldi", "data", "out"), "wav.scp", "are commands")
        (tmp_path / "t.csv").write_text("file,words\na.wav,hello\n")
        is_one_line(retort("prepare", "table", "t.csv", "out"), "no column audio and no column text")
        for kind in ("kaldi", "table", "aishell1", "librispeech", "synthetic"):
            is_one_line(retort("prepare", kind, "nowhere", "out"), "nowhere")
        is_one_line(retort("prepare", "kaldi", "-", "out"))

    def test_the_folder_of_another_recipe(self, retort: Retort, write_recipe: WriteRecipe) -> None:
        recipe = write_recipe()
        assert retort("train", recipe, "data.test=[]").code == 0
        answer = retort("train", recipe, "data.test=[]", "training.peak_lr=0.1")
        is_one_line(answer, "exp/tiny", "training.peak_lr: 0.003 there, 0.1 here", "name=ANOTHER")


def test_a_finished_run_tells_its_scores_again(
    retort: Retort, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe()
    first = retort("train", recipe)
    monkeypatch.setattr("retort.evaluation.evaluate.recognise", lambda *_: pytest.fail("decoded again"))
    again = retort("train", recipe)
    assert (first.code, again.code) == (0, 0)
    assert "exp/tiny is finished: nothing to train" in again.out
    (scores,) = (line for line in first.out.splitlines() if "CER" in line and " to " in line)
    assert scores in again.out


@pytest.mark.parametrize(
    ("verb", "called", "words"),
    [
        ("train", "retort.training.run.train", "; the same command goes on from the last checkpoint"),
        ("teach", "retort.training.teach.teach", "; every whole shard is kept, and the same command goes on behind them"),
        ("info", "retort.training.describe.describe", ""),
    ],
)  # fmt: skip
def test_a_stopped_command_says_how_to_go_on(
    retort: Retort,
    write_recipe: WriteRecipe,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    called: str,
    words: str,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(called, stop)
    answer = retort(verb, write_recipe())
    assert answer.code == 130
    assert answer.error == f"retort: stopped{words}\n"


def test_usage(retort: Retort) -> None:
    assert retort("--help").code == 0
    assert retort("nosuchverb").code == 2
    missing = retort("train")
    assert missing.code == 2
    assert "Traceback" not in missing.error


def test_the_command_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retort.cli", "info", "no/such/recipe"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    is_one_line(Answer(done.returncode, done.stdout, done.stderr), "no/such/recipe")
