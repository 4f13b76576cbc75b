"""Rows that start from what the student and the data already are: ridge, statistics, earlier projections; resumed runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retort.config.schema import Recipe
from retort.engine.log import read_metrics
from retort.training.run import train

ReadRecipe = Callable[..., Recipe]
SHORT = ("training.steps=6", "training.evaluate_steps=4", "training.log_steps=2", "training.checkpoints=1")
ROWS = """
teachers: {{bert: {{model: "{bert}", case: lower, dim: 16, layers: [1, 2]}}}}
distill:
  - {{tap: linguistic, teacher: bert, loss: regression, init: ridge, normalise: standard, share: 0.3, valid: word_end}}
  - {{tap: fired, teacher: bert, loss: contrastive, init: ridge, share: 0.2, negatives: 30, bank: 64}}
  - {{tap: history, teacher: bert, loss: cosine, control: static}}
"""


def run(recipe: Recipe, root: Path, stop: int | None = None) -> list[str]:
    """Train, interrupted at the first report of step `stop`; the notes."""
    notes: list[str] = []

    def report(step: int, values: Mapping[str, Any]) -> None:
        notes.extend([values["note"]] if "note" in values else [])
        if step == stop and "loss" in values:
            raise KeyboardInterrupt

    train(recipe, root, lambda *_: None, report)
    return notes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def objective(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "objective.safetensors")


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_rows_that_fit_the_student(
    read_recipe: ReadRecipe, root: Path, tmp_path: Path, tone_bert: Path
) -> None:
    recipe = read_recipe(*SHORT, extra=ROWS.format(bert=tone_bert), name="first")
    notes = run(recipe, root)
    assert sum("ridge" in note for note in notes) == 2
    first, *_ = lines = losses(root / "first")
    # Targets of unit variance: the mean of them has a loss of their dimension.
    assert first["linguistic.regression"] < 1.05 * first["linguistic.regression.power"]
    assert all(line["fired.contrastive.negatives"] <= 30 for line in lines)
    assert lines[-1]["fired.contrastive.negatives"] == pytest.approx(30, abs=1)
    assert all(line["linguistic.regression.weight"] > 0 for line in lines)
    saved = objective(root / "first")
    assert saved["rows.1.bank.vectors"].shape == (64, 16)
    assert (saved["rows.0.scale"] > 0).all()

    # A run that is interrupted ends where this one did, with its bank and its weights.
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path, 6)
    run(recipe, tmp_path)
    assert losses(tmp_path / "first") == losses(root / "first")
    for name, value in objective(tmp_path / "first").items():
        torch.testing.assert_close(value, saved[name], atol=1e-6, rtol=1e-5, msg=name)

    # Nothing of the rows is exported.
    exported = load_file(root / "first" / "model" / "model.safetensors")
    assert not any(name.startswith("rows") for name in exported)


def test_a_later_stage_goes_on_with_the_projections(
    read_recipe: ReadRecipe, root: Path, tone_bert: Path
) -> None:
    before = objective(root / "first")
    rows = ROWS.format(bert=tone_bert).replace("  - {tap: history", "  - {tap: acoustic").splitlines()
    reordered = "\n".join([*rows[:3], rows[4], rows[3], rows[5]])
    recipe = read_recipe(
        *SHORT, f"training.init={root / 'first'}", "training.peak_lr=0", extra=reordered, name="second"
    )
    notes = run(recipe, root)
    assert not any("ridge" in note for note in notes)
    (line,) = [note for note in notes if "projections" in note]
    assert line.endswith("fired.contrastive, linguistic.regression")
    after = objective(root / "second")
    for name in ("projection.weight", "projection.bias", "mean", "scale"):
        torch.testing.assert_close(after[f"rows.1.{name}"], before[f"rows.0.{name}"])
    torch.testing.assert_close(after["rows.0.projection.weight"], before["rows.1.projection.weight"])
