from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retort.common.errors import UserError
from retort.corpora import PREPARERS
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.evaluation import read_score
from retort.evaluation.evaluate import Evaluation, evaluate, evaluated

MakeCorpus = Callable[..., Path]


def scored(recogniser: Recogniser, source: Path, folder: Path) -> Evaluation:
    return evaluate(recogniser, str(source), folder, lambda *_: None)


def test_a_kaldi_folder_is_scored_and_written_down(
    recogniser: Recogniser, corpus: Path, tmp_path: Path
) -> None:
    found = scored(recogniser, corpus / "test", tmp_path)
    assert found.folder == tmp_path / "evaluation" / f"{corpus.name}-test"
    assert sorted(path.name for path in found.folder.iterdir()) == ["hyp.jsonl", "score.json"]
    assert len(found.score.utterances) == 6
    assert found.intervals["cer"].low <= found.score.cer <= found.intervals["cer"].high
    assert read_score(found.folder / "score.json") == found.score
    content = json.loads((found.folder / "score.json").read_text())
    assert content["cer"]["low"] == found.intervals["cer"].low
    assert content["real_time_factor"] > 0


def test_a_beam_search_is_stored_with_greedy_decoding(
    recogniser: Recogniser, corpus: Path, tmp_path: Path
) -> None:
    plain = scored(recogniser, corpus / "test", tmp_path)
    options = DecodingOptions(beam=3, nbest=2)
    found = evaluate(recogniser, str(corpus / "test"), tmp_path, lambda *_: None, options)
    assert found.folder.name == f"{plain.folder.name}-beam3"
    assert read_score(plain.folder / "score.json") == plain.score
    lines = [json.loads(line) for line in (found.folder / "hyp.jsonl").read_text().splitlines()]
    assert all(1 <= len(line["nbest"]) <= 2 for line in lines)
    assert "nbest" not in (plain.folder / "hyp.jsonl").read_text()


def test_language_models_are_named_and_counted(
    recogniser: Recogniser, corpus: Path, tmp_path: Path, tone_masked: Path
) -> None:
    model = shutil.copytree(tone_masked, tmp_path / "bert")
    options = DecodingOptions(beam=3, rescore=str(model), rescore_weight=0.4, length_weight=0.2)
    found = evaluate(recogniser, str(corpus / "test"), tmp_path, lambda *_: None, options)
    assert found.folder.name == f"{corpus.name}-test-beam3+rescore.bert"
    content = json.loads((found.folder / "score.json").read_text())
    used = {"rescore": str(model), "rescore_kind": "auto", "rescore_case": "keep"}
    weights = {"rescore_weight": 0.4, "length_weight": 0.2}
    assert content["decoding"] == {"beam": 3, "nbest": 1, **used, **weights}
    assert content["parameters"] == found.parameters
    assert found.parameters["student"] == sum(each.numel() for each in recogniser.student.parameters())
    assert found.parameters["rescore"] > 1000
    assert evaluated(recogniser, str(corpus / "test"), tmp_path, options) == found
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    assert evaluated(recogniser, str(corpus / "test"), tmp_path, options) is None


def test_lists_that_are_shorter_than_the_beam_are_no_error(
    recogniser: Recogniser, corpus: Path, tmp_path: Path, tone_masked: Path
) -> None:
    wide = DecodingOptions(beam=10**4, rescore=str(tone_masked), rescore_weight=0.1)
    recogniser.student.weights.linear.bias.data.sub_(3.0)  # it fires little, so that there is little to say
    found = evaluate(recogniser, str(corpus / "test"), tmp_path, lambda *_: None, wide)
    assert 0 < found.short <= 6
    assert json.loads((found.folder / "score.json").read_text())["short"] == found.short


def test_a_manifest_of_the_same_gives_the_same(recogniser: Recogniser, corpus: Path, tmp_path: Path) -> None:
    manifest = PREPARERS["kaldi"](corpus / "test", tmp_path / "out").manifests["test"]
    first, second = (scored(recogniser, each, tmp_path) for each in (corpus / "test", manifest))
    assert first.score.characters == second.score.characters
    assert second.folder.name == "out-test"


def test_what_cannot_be_used_counts_as_deleted(
    recogniser: Recogniser, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    data = make_corpus(tmp_path / "data" / "bad", 5)
    lines = (data / "text").read_text().splitlines()
    whole = scored(recogniser, data, tmp_path)
    samples = soundfile.read(data / "wav" / "bad-000.wav")[0]
    soundfile.write(data / "wav" / "bad-000.wav", np.zeros(len(samples)), 16000)
    (data / "text").write_text("\n".join([*lines, "bad-999 ABC"]))
    found = scored(recogniser, data, tmp_path)
    assert found.score.missing == ["bad-000"]
    assert [each.id for each in found.rejected] == ["bad-999", "bad-000"]
    assert found.score.words.reference == whole.score.words.reference
    deleted = found.score.utterances[[each.id for each in found.score.utterances].index("bad-000")]
    assert deleted.words.deletions == deleted.words.reference > 0
    table = (found.folder / "rejected.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in table] == ["id", "bad-999", "bad-000"]


def test_a_later_clean_run_takes_the_table_away(
    recogniser: Recogniser, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    data = make_corpus(tmp_path / "data", 3)
    text = (data / "text").read_text()
    (data / "text").write_text(text + "nobody ABC\n")
    assert (scored(recogniser, data, tmp_path).folder / "rejected.tsv").exists()
    (data / "text").write_text(text)
    assert not (scored(recogniser, data, tmp_path).folder / "rejected.tsv").exists()


def test_nothing_usable_is_scored_as_nothing_recognised(
    recogniser: Recogniser, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    data = make_corpus(tmp_path / "data", 2)
    for path in (data / "wav").iterdir():
        soundfile.write(path, np.zeros(16000), 16000)
    found = scored(recogniser, data, tmp_path)
    assert found.score.wer == 1.0
    assert len(found.rejected) == 2


def test_what_an_earlier_call_wrote_is_found_until_anything_changes(
    recogniser: Recogniser, tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_corpus(tmp_path / "data", 3)
    text = (data / "text").read_text()
    (data / "text").write_text(text + "nobody ABC\n")
    assert evaluated(recogniser, str(data), tmp_path) is None
    first = scored(recogniser, data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("retort.evaluation.evaluate.recognise", lambda *_: pytest.fail("decoded again"))
        again = evaluate(recogniser, str(data), tmp_path, lambda *_: None, reuse=True)
    assert again == first
    assert evaluated(recogniser, str(data), tmp_path, DecodingOptions(beam=2)) is None

    (data / "text").write_text(text)  # what is spoken, or left out
    assert evaluated(recogniser, str(data), tmp_path) is None
    assert evaluate(recogniser, str(data), tmp_path, lambda *_: None, reuse=True).rejected == []
    wave = next((data / "wav").iterdir())
    soundfile.write(wave, np.zeros(len(soundfile.read(wave)[0])), 16000)  # the audio of one utterance
    assert evaluated(recogniser, str(data), tmp_path) is None
    score = scored(recogniser, data, tmp_path).folder / "score.json"
    assert evaluated(recogniser, str(data), tmp_path) is not None
    with torch.no_grad():  # its model
        recogniser.student.ctc.bias[0] += 1
    assert evaluated(recogniser, str(data), tmp_path) is None
    scored(recogniser, data, tmp_path)
    score.write_text(score.read_text()[:-50])
    assert evaluated(recogniser, str(data), tmp_path) is None


def test_no_data(recogniser: Recogniser, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        scored(recogniser, tmp_path / "nowhere", tmp_path)
