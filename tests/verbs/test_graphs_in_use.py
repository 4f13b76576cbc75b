"""A CTC head through a decoding graph, from `retort tune` to subtitles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from answers import Retort, is_one_line
from retort.evaluation import read_score
from retort.evaluation.results import read_results
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import CharacterTokenizer, WordTokenizer
from tiny_lms import save_ngram

pytest.importorskip("kaldi_decoder")
pytest.importorskip("kaldilm")


@pytest.fixture(scope="module")
def lm(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over the words of the corpus, in capitals, and one that the model cannot spell."""
    folder = tmp_path_factory.mktemp("lm") / "words"
    lines = [
        line for split in ("train", "test") for line in (corpus / split / "text").read_text().splitlines()
    ]
    texts = [*(line.partition(" ")[2] for line in lines), "ABC XYZ"]
    save_ngram(folder, WordTokenizer.train(texts, 500), texts, order=2)
    return folder


def test_from_tuning_to_a_transcript(
    retort: Retort, experiment: Path, corpus: Path, lm: Path, tmp_path: Path
) -> None:
    answer = retort("tune", experiment, corpus / "validation", "--graph", lm, "--jobs", 1)
    assert (answer.code, answer.error) == (0, "")
    assert "without the graph" in answer.out
    tuned = experiment / "tuning" / f"{corpus.name}-validation-beam1+graph.words" / "tuned.json"
    content = json.loads(tuned.read_text())
    tried = {float(scale): rate for scale, rate in content["tuning"]["tried"].items()}
    assert {0.35, 0.5, 0.7, 1.0, 1.4, 2.0} <= tried.keys()
    assert tried[content["acoustic_scale"]] == content["tuning"]["rate"] == min(tried.values())
    (graph,) = (tmp_path / "exp" / "cache" / "graphs").iterdir()
    assert (graph / "graph.json").is_file()

    answer = retort("evaluate", experiment, corpus / "test", "--tuned", tuned, "--results", "r.json")
    assert (answer.code, answer.error) == (0, "")
    assert "1 of the " in answer.out
    assert "parameters at inference: student" in answer.out
    (result,) = read_results(tmp_path / "r.json")
    assert (result["system"], result["workers"]) == ("tiny+graph", min(len(os.sched_getaffinity(0)), 6))
    folder = experiment / "evaluation" / f"{corpus.name}-test-beam1+graph.words"
    lines = [json.loads(line) for line in (folder / "hyp.jsonl").read_text().splitlines()]
    known = {symbol.lower() for symbol in open_tokenizer(lm / "model" / "tokenizer").symbols}
    assert all(set(line["hypothesis"].split()) <= known for line in lines)
    wave = corpus / "test/wav/test-000.wav"
    recognised = retort("transcribe", experiment, "--tuned", tuned, wave)
    assert recognised.code == 0
    assert recognised.error.startswith("retort: 1 of the ")
    output = {line["id"]: line["hypothesis"] for line in lines}
    assert recognised.out.strip() == output["test-000"]
    scores = folder / "score.json"
    assert retort("compare", scores, scores).code == 0
    assert [each.name for each in (tmp_path / "exp" / "cache" / "graphs").iterdir()] == [graph.name]


def test_more_processes_change_nothing_but_the_time(
    retort: Retort, experiment: Path, corpus: Path, lm: Path
) -> None:
    folder = experiment / "evaluation" / f"{corpus.name}-test-beam3+graph.words"
    recognised = []
    for jobs in (1, 2):
        options = ("--graph", lm, "--beam", 3, "--nbest", 3, "--acoustic-scale", 0.7, "--jobs", jobs)
        answer = retort("evaluate", experiment, corpus / "test", *options)
        assert (answer.code, answer.error) == (0, "")
        (cost,) = (line for line in answer.out.splitlines() if "core seconds" in line)
        assert ("with 2 processes" in cost) == (jobs == 2)
        assert json.loads((folder / "score.json").read_text())["workers"] == jobs
        assert read_score(folder / "score.json").workers == jobs
        recognised.append((folder / "hyp.jsonl").read_bytes())
    assert recognised[0] == recognised[1]
    assert b'"nbest"' in recognised[0]


def test_mistakes(retort: Retort, experiment: Path, corpus: Path, lm: Path, tmp_path: Path) -> None:
    test = corpus / "test"
    is_one_line(retort("evaluate", experiment, test, "--acoustic-scale", 0.5), "no decoding graph", "--graph")
    is_one_line(retort("evaluate", experiment, test, "--graph", "x"), "no n-gram model here")
    both = ("--graph", lm, "--lm", lm, "--lm-weight", 0.1)
    is_one_line(retort("evaluate", experiment, test, *both), "cannot be combined")
    is_one_line(retort("evaluate", experiment, test, "--graph", lm, "--nbest", 2), "beam of at least 2")
    is_one_line(retort("tune", experiment, test, "--graph", lm, "--beam", 4), "--beam")
    is_one_line(retort("tune", experiment, test, "--graph", lm, "--lm", "x"), "cannot be combined")
    save_ngram(tmp_path / "letters", CharacterTokenizer.train(["abc"]), ["abc"], 1)
    wave = test / "wav/test-000.wav"
    is_one_line(retort("transcribe", experiment, "--graph", "letters", wave), "ngram, over characters")
