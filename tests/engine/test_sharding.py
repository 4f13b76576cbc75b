"""Parameters divided among two processes by FSDP 2 against whole ones. accelerate keeps FSDP to GPUs; here it is
told to divide on the CPU, by the code that it has for GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.engine.checkpoints import CheckpointFolder, read_weights
from retort.engine.log import read_metrics
from retort.engine.processes import check_division, make_accelerator
from retort.engine.sharding import whole_optimizer, whole_weights
from retort.students.cif import CifStudent
from retort.training.module import StepOutput
from retort.training.trainer import Trainer
from tiny_trainers import read_cuts, trainer_of
from two_processes import results_of, run_in_two

OVERRIDES = (
    "batches.seconds=6",
    "training.accumulation=2",
    "training.log_steps=1",
    "training.evaluate_steps=2",
    "training.clip=1",
    "training.freeze=[ctc]",
)
ROWS = """
teachers: {{bert: {{model: "{bert}", case: lower}}}}
distill:
  - {{tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1, negatives: 20}}
  - {{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}
"""
PARTS = ("student", "objective", "optimizer")
WRAPS: dict[str, dict[str, Any]] = {
    "fp32": {
        "auto_wrap_policy": "transformer_based_wrap",
        "transformer_cls_names_to_wrap": ["ConformerLayer", "CausalLayer"],
    },
    "bf16": {"auto_wrap_policy": "no_wrap"},
}
"""What is put together at a time: a layer, or everything. Both ways are tried, each with one precision."""


def divide(accelerator: Accelerator, **options: Any) -> Accelerator:
    """Let accelerate divide parameters, as its configuration does on GPUs."""
    plugin = accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**options)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.distributed_type = DistributedType.FSDP
    check_division(accelerator)
    return accelerator


def seen(student: CifStudent) -> dict[str, float]:
    """In the place of error rates, what a student makes of some noise: the whole of it is at hand, out of training."""
    features = torch.randn(1, 80, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return {"cer": float(student.encode(features, torch.tensor([80])).hidden.float().abs().mean())}


def trainer_for(recipe: Recipe, folder: Path, manifest: Path, sharded: bool) -> Trainer:
    accelerator = make_accelerator(recipe.training)
    if sharded:
        divide(accelerator, fsdp_version=2, **WRAPS[recipe.training.precision])
    return trainer_of(recipe, folder, read_cuts(manifest), accelerator=accelerator, validate=seen)


def learn(
    process: int, recipe: str, precision: str, folder: Path, manifest: Path, sharded: bool
) -> dict[str, Any]:
    """Two updates, and in another session the next two."""
    shares = []
    for steps in (2, 4):
        overrides = [*OVERRIDES, f"training.steps={steps}", f"training.precision={precision}"]
        trainer = trainer_for(load_recipe(recipe, overrides), folder, manifest, sharded)
        assert trainer.resume() == []
        assert trainer.position.step == steps - 2
        trainer.run(lambda step, values: None)
        for parameter in trainer.module.parameters():
            assert parameter.dtype == torch.float32
            if isinstance(parameter.data, DTensor):
                shares.append(parameter.to_local().numel() / parameter.numel())
    return {"shares": shares}


def pass_on(process: int, recipe: str, folder: Path, manifest: Path) -> dict[str, Any]:
    """What two sharded processes write of the checkpoint that they read."""
    trainer = trainer_for(load_recipe(recipe, [*OVERRIDES]), folder, manifest, True)
    trainer.resume()
    trainer.checkpoints.folder = folder / "again"
    trainer._save()
    return {"step": trainer.position.step}


@pytest.fixture(scope="module")
def recipe(
    recipe_text: Callable[[str], str], tone_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    path = tmp_path_factory.mktemp("recipe") / "sharded.yaml"
    path.write_text(recipe_text("sharded") + ROWS.format(bert=tone_bert))
    return str(path)


@pytest.fixture(scope="module")
def folder(recipe: str, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fp32.whole`, `fp32.sharded` and their like of bf16: runs of two processes. `one`: of a single process, and
    `one/again` what two sharded ones made of its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    alone = trainer_for(
        load_recipe(recipe, [*OVERRIDES, "training.steps=2"]), folder / "one", manifest, False
    )
    alone.run(lambda step, values: None)
    runs = {f"{each}.{name}": (each, name) for each in ("fp32", "bf16") for name in ("whole", "sharded")}
    tasks: dict[str, tuple[Any, ...]] = {
        run: (learn, recipe, precision, folder / run, manifest, kind == "sharded")
        for run, (precision, kind) in runs.items()
    }
    run_in_two(folder, {**tasks, "pass_on": (pass_on, recipe, folder / "one", manifest)})
    return folder


def last(folder: Path, checkpoints: str = "checkpoints") -> dict[str, dict[str, Tensor]]:
    path = sorted((folder / checkpoints).glob("step-*"))[-1]
    return {part: read_weights(path / f"{part}.safetensors") for part in PARTS}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-3)])
def test_divided_parameters_learn_what_whole_ones_learn(
    folder: Path, precision: str, tolerance: float
) -> None:
    """Losses, norms that are clipped, the student that is evaluated; over accumulation, rows and a resume."""
    expected, found = (metrics(folder / f"{precision}.{each}") for each in ("whole", "sharded"))
    assert len(expected) == 6
    assert len({line["validation.cer"] for line in expected if "validation.cer" in line}) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)


def test_they_are_divided(folder: Path) -> None:
    for result in results_of(folder, "fp32.sharded"):
        assert len(result["shares"]) > 50
        assert sum(result["shares"]) / len(result["shares"]) == pytest.approx(0.5, abs=0.1)
    assert all(result["shares"] == [] for result in results_of(folder, "fp32.whole"))


def test_their_checkpoint_is_that_of_whole_ones(folder: Path) -> None:
    expected, found = last(folder / "fp32.whole"), last(folder / "fp32.sharded")
    for part in PARTS:
        assert expected[part].keys() == found[part].keys()
        for name, value in expected[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=1e-3, atol=2e-5, msg=f"{part} {name}")


def test_one_process_goes_on_from_it(folder: Path, recipe: str, manifest: Path) -> None:
    expected = last(folder / "fp32.sharded")
    trainer = trainer_for(load_recipe(recipe, [*OVERRIDES]), folder / "fp32.sharded", manifest, False)
    assert trainer.resume() == []
    assert trainer.position.step == 4
    weights = {"student": trainer.module.student, "objective": trainer.module.objective}
    found = {name: whole_weights(module) for name, module in weights.items()}
    found["optimizer"] = whole_optimizer(trainer.optimizer)
    for part in PARTS:
        assert expected[part].keys() == found[part].keys()
        assert all(torch.equal(found[part][name], value) for name, value in expected[part].items())
    trainer.recipe.training.steps = 5
    trainer.run(lambda step, values: None)
    assert trainer.position.step == 5


def test_divided_ones_go_on_from_that_of_one_process(folder: Path) -> None:
    assert [each["step"] for each in results_of(folder, "pass_on")] == [2, 2]
    expected, found = last(folder / "one"), last(folder / "one", "again")
    for part in PARTS:
        assert expected[part].keys() == found[part].keys()
        assert all(torch.equal(found[part][name], value) for name, value in expected[part].items())
    states = [
        json.loads((CheckpointFolder(folder / "one" / each).path(2) / "state.json").read_text())
        for each in ("checkpoints", "again")
    ]
    assert states[0] == states[1]


def test_fsdp_sees_the_sums_of_a_pass() -> None:
    """It waits for the gradients of the tensors that it finds in what a forward pass returns, and finds no others."""
    sums = torch.zeros(()), torch.ones(())
    leaves = tree_leaves(StepOutput(*sums, {}))
    assert all(any(leaf is each for leaf in leaves) for each in sums)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fsdp_version": 1}, "FSDP 1. Set fsdp_version: 2"),
        ({"fsdp_version": 2, "activation_checkpointing": True}, "activation checkpointing"),
    ],
)
def test_what_is_not_supported_is_one_line(options: dict[str, Any], reason: str, recipe: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        divide(make_accelerator(load_recipe(recipe, []).training), **options)
    assert "\n" not in str(error.value)


def test_deepspeed_is_refused(recipe: str) -> None:
    accelerator = make_accelerator(load_recipe(recipe, []).training)
    accelerator.state.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(UserError, match="DEEPSPEED"):
        check_division(accelerator)
