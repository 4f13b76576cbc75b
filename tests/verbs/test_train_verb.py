from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from answers import Answer, Retort, is_one_line
from retort.evaluation import read_score
from retort.evaluation.results import read_results

MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Say = Callable[..., np.ndarray]


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
    assert (entry["system"], entry["recipe"], entry["seed"], entry["steps"]) == ("tiny", "tiny", 3, 12)
    score = read_score(tmp_path / f"exp/tiny/evaluation/{corpus.name}-test/score.json")
    assert entry["cer"] == score.cer
    again = retort("train", recipe, "seed=3", "--results", "results/tiny.json")
    assert again.code == 0
    assert len(read_results(tmp_path / "results/tiny.json")) == 1
    info = retort("info", recipe, f"tokenizer.size={open_size(tmp_path / 'exp/tiny')}")
    assert f"{entry['params']:,}" in info.out


def open_size(experiment: Path) -> int:
    from retort.text.tokenizer_io import open_tokenizer

    return open_tokenizer(experiment / "model" / "tokenizer").size


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
        ("train", "retort.training.run.train", "; run the same command again to continue from the last checkpoint"),
        ("teach", "retort.training.teach.teach", "; completed shards are stored: run the same command again to continue"),
        ("info", "retort.info.describe.describe", ""),
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
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(called, stop)
    answer = retort(verb, write_recipe())
    assert answer.code == 143
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
