from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from answers import Retort, is_one_line
from retort.evaluation import read_score
from retort.evaluation.results import read_results

MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Say = Callable[..., np.ndarray]


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
        assert "tuned.json; tuned on" in answer.out
        base = f"{corpus.name}-validation-beam3+rescore.{tone_masked.name}"
        tuned = experiment / "tuning" / base / "tuned.json"
        assert str(tuned) in answer.out
        answer = retort("evaluate", experiment, corpus / "test", "--tuned", tuned, "--results", "r.json")
        assert (answer.code, answer.error) == (0, "")
        assert "parameters at inference: student" in answer.out
        answer = retort("evaluate", experiment, corpus / "test", "--results", "r.json")
        first, second = read_results(tmp_path / "r.json")
        assert (first["system"], second["system"]) == ("tiny+rescore", "tiny")
        assert first["params"] > second["params"]  # type: ignore[operator]
        answer = retort("gap", corpus / "test", "--student", experiment, "--distilled", experiment)
        assert (answer.code, answer.error) == (0, "")
        assert "gain of distillation" in answer.out
        weights = ("--rescore-weight", 0.5, "--length-weight", 0.1)
        found = retort("transcribe", experiment, *models, *weights, corpus / "test/wav/test-000.wav")
        assert (found.code, found.error) == (0, "")

    def test_mistakes(self, retort: Retort, experiment: Path, corpus: Path, tone_bert: Path) -> None:
        test = corpus / "test"
        is_one_line(retort("evaluate", experiment, test, "--lm", "x"), "--lm needs --lm-weight", "tune")
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
        is_one_line(retort("tune", experiment, test), "nothing to tune: the search of this model")
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
        reported = read_score(score)
        score.unlink()
        answer = retort("evaluate", "models/tones", corpus / "test")
        assert (answer.code, answer.error) == (0, "")
        assert read_score(score).utterances == reported.utterances
        (rates,) = (line for line in answer.out.splitlines() if "CER" in line)
        row = next(line for line in card.splitlines() if line.startswith(f"| {corpus.name}/test |"))
        assert all(part in row for part in re.findall(r"[\d.]+%", rates))
        soundfile.write(tmp_path / "a.flac", say("abc def"), 16000)
        recognised = retort("transcribe", "models/tones", "a.flac")
        assert (recognised.code, recognised.error) == (0, "")
        assert retort("report", "models/tones").code == 0
        assert (tmp_path / "exp/models/tones/report.html").is_file()
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")} == before

    def test_a_large_one_is_reported(
        self, retort: Retort, experiment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("retort.release.release.SMALL", 1000)
        assert "more than 0 MB" in retort("release", experiment, "models/large", *self.TERMS).out

    def test_mistakes(self, retort: Retort, experiment: Path, tmp_path: Path) -> None:
        is_one_line(retort("release", "exp/nowhere", "models/x", *self.TERMS), "exp/nowhere")
        is_one_line(retort("release", experiment, experiment, *self.TERMS), "other files than a release")
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
        assert found[0].keys() == {"file", "text", "words", "no_speech", "tokens"}
        assert len(found[0]["tokens"]) > 0
        seconds = soundfile.info(wave).duration
        for unit in ("words", "tokens"):
            times = [time for each in found[0][unit] for time in (each["start"], each["end"])]
            assert times == sorted(times)
            assert all(0.0 <= time <= seconds + 1e-6 for time in times)
            assert all(0.0 <= each["confidence"] <= 1.0 for each in found[0][unit])
        text = "".join(each["text"] for each in found[0]["tokens"])
        assert " ".join(text.split()) == found[0]["text"] == " ".join(w["text"] for w in found[0]["words"])

    def test_transcripts_of_a_beam_search(self, retort: Retort, experiment: Path, wave: Path) -> None:
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

    def test_a_bad_file_is_reported_and_the_others_go_on(
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
