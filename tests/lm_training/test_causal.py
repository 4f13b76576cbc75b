"""`retort lm train` of causal models and n-grams."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from retort.cli import app
from retort.common.errors import UserError
from retort.engine.log import read_metrics
from retort.engine.loop import Stopped
from retort.lm.factory import open_causal_lm
from retort.lm.scoring import score_text
from retort.lm_training.data import open_text
from retort.lm_training.run import LmOutcome, train_lm
from retort.text.tokenizers import CharacterTokenizer

Read = Callable[..., Any]


def run(recipe: Any, root: Path, report: Any = lambda step, values: None) -> LmOutcome:
    return train_lm(recipe, root, lambda stage, done, total: None, report)


@pytest.mark.parametrize("kind", ["transformer", "lstm", "ngram"])
def test_it_learns_to_count(causal_recipe: Read, tmp_path: Path, kind: str) -> None:
    overrides = ["kind=ngram"] if kind == "ngram" else [f"model.kind={kind}", "training.steps=100"]
    outcome = run(causal_recipe(*overrides, "training.evaluate_steps=50"), tmp_path / "exp")
    unigram = run(causal_recipe("kind=ngram", "ngram.order=1", "name=unigram"), tmp_path / "exp")
    assert unigram.score.perplexity > 7.0
    assert outcome.score.perplexity < 3.0
    assert (outcome.score.sentences, outcome.score.unknown) == (unigram.score.sentences, 0)
    assert json.loads((outcome.folder / "score.json").read_text())["perplexity"] == outcome.score.perplexity

    model = open_causal_lm(outcome.folder)
    again = score_text(model, open_text(causal_recipe()).held_out)
    assert again.perplexity == pytest.approx(outcome.score.perplexity, rel=1e-5)
    if kind != "ngram":
        validated = [
            line for line in read_metrics(outcome.folder / "metrics.jsonl") if "validation.ce" in line
        ]
        assert len(validated) == 2
        best = min(line["validation.ce"] for line in validated)
        assert np.exp(best) == pytest.approx(outcome.score.perplexity, rel=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_a_resumed_run_is_the_unbroken_one(causal_recipe: Read, tmp_path: Path, kind: str) -> None:
    recipe = causal_recipe(f"model.kind={kind}", "model.dropout=0.1", "training.log_steps=1")
    whole = run(recipe, tmp_path / "whole")

    def kill(step: int, values: dict[str, Any]) -> None:
        if step == 5 and "ce" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run(recipe, tmp_path / "broken", kill)
    steps: list[int] = []
    broken = run(recipe, tmp_path / "broken", lambda step, values: steps.append(step))
    assert min(steps) == 6
    assert broken.score == whole.score
    model = (each / "model" / "model.safetensors" for each in (broken.folder, whole.folder))
    assert next(model).read_bytes() == next(model).read_bytes()


def test_the_pieces_are_the_students(causal_recipe: Read, tmp_path: Path) -> None:
    student = CharacterTokenizer.train(["one two three four five six seven eight"])
    student.save(tmp_path / "exp" / "students" / "a" / "model" / "tokenizer")
    wanted = ["tokenizer.kind=student", "kind=ngram"]
    for name in ("students/a", str(tmp_path / "exp" / "students" / "a"), f"{tmp_path}/exp/students/a/model"):
        shutil.rmtree(tmp_path / "exp" / "toy", ignore_errors=True)
        outcome = run(causal_recipe(*wanted, f"tokenizer.model={name}"), tmp_path / "exp")
        assert open_causal_lm(outcome.folder).symbols == student.symbols
    with pytest.raises(
        UserError, match=r"no student with a tokenizer in .*retort train students/b"
    ) as caught:
        run(causal_recipe(*wanted, "name=other", "tokenizer.model=students/b"), tmp_path / "exp")
    assert "\n" not in str(caught.value)


def test_an_arpa_file_is_taken_as_it_is(causal_recipe: Read, tmp_path: Path) -> None:
    own = run(causal_recipe("kind=ngram", "ngram.prune=[0,1]"), tmp_path / "exp")
    arpa = own.folder / "model" / "lm.arpa.gz"
    student = ["kind=ngram", "tokenizer.kind=student", "tokenizer.model=toy", f"ngram.arpa={arpa}"]
    taken = run(causal_recipe(*student, "name=taken", "text=[]"), tmp_path / "exp")
    assert taken.score.perplexity == pytest.approx(own.score.perplexity, rel=1e-4)
    assert own.summary == f"{taken.summary}; fixed discounts for order 1, 2, 3"
    CharacterTokenizer.train(["xyz"]).save(tmp_path / "exp" / "strange" / "tokenizer")
    with pytest.raises(UserError, match="pieces that strange lacks"):
        run(causal_recipe(*student, "name=lost", "tokenizer.model=strange"), tmp_path / "exp")


def test_the_words_of_an_arpa_file_are_its_own(causal_recipe: Read, tmp_path: Path) -> None:
    words = ["kind=ngram", "tokenizer.kind=words"]
    own = run(causal_recipe(*words), tmp_path / "exp")
    arpa = own.folder / "model" / "lm.arpa.gz"
    taken = run(causal_recipe(*words, "name=taken", "text=[]", f"ngram.arpa={arpa}"), tmp_path / "exp")
    assert sorted(open_causal_lm(taken.folder).symbols) == sorted(open_causal_lm(own.folder).symbols)
    assert taken.score.perplexity == pytest.approx(own.score.perplexity, rel=1e-4)
    (tmp_path / "no.arpa").write_text("\\data\\\n")
    with pytest.raises(UserError, match="contains no n-grams"):
        run(causal_recipe(*words, "name=none", "text=[]", f"ngram.arpa={tmp_path}/no.arpa"), tmp_path / "exp")


def test_the_verbs(causal_recipe: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    causal_recipe()
    monkeypatch.chdir(tmp_path)
    for kind, reported in (("causal", "3 steps"), ("ngram", "n-grams of 1 to 3 pieces: 12, ")):
        trained = CliRunner().invoke(
            app,
            ["lm", "train", "toy.yaml", f"kind={kind}", f"name={kind}", "training.steps=3"],
            catch_exceptions=False,
        )
        assert trained.exit_code == 0
        assert f"exp/{kind}/model: {reported}" in trained.output
        (tmp_path / "asked.txt").write_text("One TWO, three\nnine\n")
        scored = CliRunner().invoke(app, ["lm", "score", f"exp/{kind}", "asked.txt"], catch_exceptions=False)
        assert scored.exit_code == 0
        assert "25.00%" in scored.output  # of four pieces one is unknown
        assert "word perplexity" in scored.output
        assert "top1" not in scored.output
