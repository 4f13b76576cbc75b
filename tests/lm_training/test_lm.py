from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from retort.cli import app
from retort.common.errors import UserError
from retort.engine.log import read_metrics
from retort.engine.loop import Stopped
from retort.lm.masked_scoring import open_masked_scorer, score_sentences
from retort.lm_training import data as lm_data
from retort.lm_training.run import LmOutcome, train_lm
from retort.teachers import open_teacher_model
from retort.teachers.masked_lm import MaskedLMConfig

RECIPE = """
name: toy
text:
  - {{source: {folder}/large.txt}}
  - {{source: {folder}/small.txt, repeat: 2}}
held_out: [{folder}/held_out.txt]
normaliser: {{case: lower}}
tokenizer: {{size: 60}}
model: {{layers: 2, dim: 64, heads: 4, feedforward: 128, dropout: 0.0}}
batches: {{pieces: 512, longest: 16}}
training: {{steps: 24, schedule: cosine, peak_lr: 3.0e-3, warmup_steps: 4, precision: fp32, device: cpu,
            evaluate_steps: 12, log_steps: 4}}
"""

Read = Callable[..., Any]


@pytest.fixture
def read(counting_recipe: Callable[[str], Read]) -> Read:
    return counting_recipe(RECIPE)


def run(recipe: Any, root: Path, report: Any = lambda step, values: None) -> LmOutcome:
    return train_lm(recipe, root, lambda stage, done, total: None, report)


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_it_learns_to_count_and_is_a_teacher(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(read("training.steps=240", "training.evaluate_steps=60"), tmp_path / "exp")
    assert outcome.score.top1 > 0.6  # chance is an eighth
    assert outcome.score.perplexity < 4.0  # of eight
    metrics = read_metrics(outcome.folder / "metrics.jsonl")
    validated = [line for line in metrics if "validation.ce" in line]
    assert len(validated) == 4
    assert validated[-1]["validation.correct"] > 0.6
    assert json.loads((outcome.folder / "score.json").read_text())["top1"] == outcome.score.top1

    init = f"init={outcome.folder}"
    further = run(read(init, "name=on", "training.steps=1", "training.peak_lr=1e-6"), tmp_path / "exp")
    assert further.score.top1 == pytest.approx(outcome.score.top1, abs=0.05)
    assert not (further.folder / "tokenizer").exists()

    monkeypatch.chdir(tmp_path)
    masked_lm, tokenizer, limit = open_masked_scorer("exp/toy/model")
    again = score_sentences(masked_lm, tokenizer, lm_data.open_text(read()).held_out, limit)
    assert again.perplexity == pytest.approx(outcome.score.perplexity, rel=1e-4)
    readings = []
    for model in ("exp/toy/model", "exp/toy", str(tmp_path / "exp" / "toy" / "model")):
        teacher = open_teacher_model(MaskedLMConfig(model=model, case="lower"))
        readings.append((teacher.read(["ONE TWO"])[0].vectors, {**teacher.identity(), "model": ""}))
    assert all(torch.equal(each[0], readings[0][0]) and each[1] == readings[0][1] for each in readings)


def test_held_out_sentences_are_never_learned_from(read: Read, tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("One two\nnine\n")
    (tmp_path / "large.txt").write_text("one, TWO!\nthree four\nnine\n")
    text = lm_data.open_text(read())
    assert text.held_out == ["one two", "nine"]
    assert list(text.training(text.sources[0][0])) == ["three four"]


@pytest.mark.parametrize("stop", [5, 17])
def test_a_resumed_run_is_the_unbroken_one(read: Read, tmp_path: Path, stop: int) -> None:
    whole = run(read("training.log_steps=1", "model.dropout=0.1"), tmp_path / "whole")

    # `tokenizers` breaks ties by chance: another training of the pieces is another vocabulary.
    shutil.copytree(whole.folder / "tokenizer", tmp_path / "broken" / "toy" / "tokenizer")

    def kill(step: int, values: dict[str, Any]) -> None:
        if step == stop and "ce" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run(read("training.log_steps=1", "model.dropout=0.1"), tmp_path / "broken", kill)
    steps: list[int] = []
    broken = run(
        read("training.log_steps=1", "model.dropout=0.1"),
        tmp_path / "broken",
        lambda step, values: steps.append(step),
    )
    assert min(steps) == stop + 1
    assert without_seconds(broken.folder) == without_seconds(whole.folder)
    assert broken.score == whole.score
    model = (each / "model" / "model.safetensors" for each in (broken.folder, whole.folder))
    assert next(model).read_bytes() == next(model).read_bytes()


def test_bf16_and_accumulation_learn_too(read: Read, tmp_path: Path) -> None:
    losses: list[float] = []
    overrides = (
        "training.precision=bf16",
        "training.accumulation=2",
        "batches.pieces=128",
        "training.steps=16",
    )
    run(read(*overrides), tmp_path, lambda step, values: losses.append(values.get("ce", 9.0)))
    assert min(losses[-4:]) < losses[0] - 0.1


def test_text_is_cut_into_pieces_once(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(read("training.steps=1"), tmp_path)
    made = sorted((tmp_path / "cache" / "lm").iterdir())
    assert len(made) == 2
    with monkeypatch.context() as patched:
        patched.setattr(lm_data.PieceStore, "write", lambda *_, **__: pytest.fail("cut again"))
        run(read("training.steps=1"), tmp_path)
    run(read("training.steps=1", "name=other", "batches.longest=8"), tmp_path)
    assert len(list((tmp_path / "cache" / "lm").iterdir())) == 4


def test_an_encoder_without_a_head_is_trained_on_with_its_own_pieces(
    read: Read, tmp_path: Path, make_bert: Any
) -> None:
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
    ]
    encoder = make_bert(vocabulary=pieces)

    def vectors(model: Path) -> torch.Tensor:
        return open_teacher_model(MaskedLMConfig(model=str(model))).read(["one two"])[0].vectors

    init = (f"init={encoder}", "batches.longest=12")
    run(read(*init, "training.steps=1", "training.peak_lr=0.0"), tmp_path)
    torch.testing.assert_close(vectors(tmp_path / "toy"), vectors(encoder))
    trained = run(read(*init, "name=trained"), tmp_path)
    assert not torch.allclose(vectors(trained.folder), vectors(encoder), atol=1e-2)
    assert open_masked_scorer(str(trained.folder))[1].convert_ids_to_tokens(5) == "one"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["text=[{source: nowhere.txt}]"], "no such file"),
        (["held_out=[nowhere.txt]"], "no such file"),
        (["text=[{source: EMPTY}]"], "contains no text"),
        (["held_out=[EMPTY]"], "contains no text"),
        (["held_out=[POINTS]"], "every text of held_out is empty after normalisation"),
        (["text=[{source: HELD}]"], "no training sentence is left"),
        (["init=./nowhere"], "no such folder"),
        (["init=BARE"], "its tokenizer has no vocabulary"),
        (["init=BERT"], "batches.longest is 16, the model's maximum is 12 pieces"),
    ],
)
def test_what_is_wrong_is_one_line(
    read: Read, tmp_path: Path, make_bert: Any, overrides: list[str], message: str
) -> None:
    read()
    files = {"EMPTY": "", "POINTS": "...\n", "HELD": (tmp_path / "held_out.txt").read_text()}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        overrides = [each.replace(name, str(tmp_path / name)) for each in overrides]
    bare, bert = make_bert(), make_bert()
    for name in ("vocab.txt", "tokenizer.json"):
        (bare / name).unlink(missing_ok=True)
    overrides = [each.replace("BARE", str(bare)).replace("BERT", str(bert)) for each in overrides]
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
        run(read(*overrides), tmp_path / "exp")
    assert "\n" not in str(caught.value)


def test_the_verbs(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["lm", "train", "toy.yaml", "training.steps=3"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "exp/toy/model: 3 steps" in done.output
    scored = CliRunner().invoke(app, ["lm", "score", "exp/toy", "held_out.txt"], catch_exceptions=False)
    assert scored.exit_code == 0
    assert "word perplexity" in scored.output
    with pytest.raises(UserError, match="--case is 'title'"):
        CliRunner().invoke(app, ["lm", "score", "exp/toy", "x", "--case", "title"], catch_exceptions=False)
