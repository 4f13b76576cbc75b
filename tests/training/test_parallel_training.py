"""Runs of what decodes in parallel, and of rows that bring frames to tokens: they learn, and ship no more than they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file

from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import load
from retort.engine.log import read_metrics
from retort.info.describe import describe
from retort.nn.parallel_decoder import ParallelDecoder
from retort.students.cif import CifStudent
from retort.students.factory import build_student
from retort.training.run import train
from tiny_trainers import trainer_of

ReadRecipe = Callable[..., Recipe]
POOLED = """
teachers: {{bert: {{model: "{bert}", case: lower}}}}
distill:
  - {{tap: frames.1, teacher: bert, loss: cosine, pool: cif, weight: 0.5}}
  - {{tap: frames.1, teacher: bert, loss: contrastive, pool: attention, weight: 0.1}}
  - {{tap: acoustic, teacher: bert, loss: relational}}
  - {{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}
"""

PARALLEL = (
    "student.decoder.kind=parallel", "student.decoder.layers=1", "student.decoder.dim=32", "student.decoder.heads=2",
    "student.decoder.feedforward=64", "student.decoder.dropout=0.1",
)  # fmt: skip


def silent(step: int, values: Mapping[str, float]) -> None:
    pass


def test_the_losses_of_a_parallel_decoder_go_down(
    cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    recipe = read_recipe(
        *PARALLEL, "training.steps=100", "training.evaluate_steps=100",
        "training.schedule=cosine", "training.peak_lr=0.005", "training.warmup_steps=10",
        "training.log_steps=20",
    )  # fmt: skip
    trainer = trainer_of(recipe, tmp_path, cuts.subset(first=6))
    trainer.run(silent)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert lines[-1]["ce"] < 0.8 * lines[0]["ce"]
    assert lines[-1]["correct"] > lines[0]["correct"] + 0.1
    assert 0.0 < lines[-1]["shown"] < lines[0]["shown"]


def test_a_run_with_pooled_rows_is_whole_and_drops_what_the_rows_trained(
    read_recipe: ReadRecipe, tone_bert: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(*PARALLEL, extra=POOLED.format(bert=tone_bert))
    outcome = train(recipe, tmp_path / "exp", lambda *_: None, lambda *_: None)
    logged = {key for line in read_metrics(outcome.folder / "metrics.jsonl") for key in line}
    assert {
        "frames.1.cosine", "frames.1.cosine.quantity", "frames.1.contrastive.accuracy",
        "acoustic.relational.spread", "linguistic.regression", "shown",
    } <= logged  # fmt: skip
    recogniser = load(outcome.folder / "model")
    assert isinstance(recogniser.student, CifStudent)
    assert isinstance(recogniser.student.decoder, ParallelDecoder)
    shipped = load_file(outcome.folder / "model" / "model.safetensors")
    fresh = build_student(recipe.student, recogniser.tokenizer.size, recipe.features.bins)
    assert shipped.keys() == fresh.state_dict().keys()
    assert outcome.params == sum(each.numel() for each in fresh.parameters())


def test_a_parallel_model_is_searched_with_a_beam(read_recipe: ReadRecipe, tmp_path: Path) -> None:
    recipe = read_recipe(*PARALLEL, "training.steps=2", "training.evaluate_steps=2")
    outcome = train(recipe, tmp_path / "exp", lambda *_: None, lambda *_: None)
    features = [torch.randn(size, 40, generator=torch.Generator().manual_seed(size)) for size in (60, 90)]
    (wide, _), (narrow, _) = (
        outcome.recogniser.search(features, DecodingOptions(beam=beam)) for beam in (4, 1)
    )
    assert isinstance(wide, list)
    assert isinstance(narrow, list)
    assert wide[0].ids == narrow[0].ids
    assert len({tuple(each.ids) for each in wide}) == len(wide) == 4


@pytest.mark.parametrize("name", ["cif +distill/pooled_cif", "cif +distill/pooled_attention", "relational"])
def test_rows_that_pool_ship_nothing(name: str) -> None:
    alone, described = (describe(load_recipe(f"speechocean762/{each}")) for each in ("cif", name))
    assert described.shipped == alone.shipped
    # Estimator or attention, and a projection; relations train nothing.
    trained = {
        "cif +distill/pooled_cif": (3 * 144 * 144 + 144 + 144 + 1) + (144 * 256 + 256),
        "cif +distill/pooled_attention": 4 * (144 * 144 + 144) + (144 * 256 + 256),
        "relational": 0,
    }
    assert described.training_only == trained[name]
