"""ScaledAdam against algorithm 1 of its paper, number by number, and in the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lhotse import CutSet
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from retort.config.schema import LoopConfig, Recipe
from retort.engine.log import read_metrics
from retort.engine.optim import ETA, LEAST, MOST, ScaledAdam, make_optimiser
from retort.engine.sharding import load_optimizer, whole_optimizer, whole_weights
from retort.nn.zipformer import ZipformerConfig, ZipformerStack
from retort.training.trainer import Trainer
from tiny_trainers import trainer_of
from two_processes import results_of, run_in_two

ReadRecipe = Callable[..., Recipe]
ZIPFORMER = (
    "student.encoder.kind=zipformer",
    "student.encoder={attention_dropout: 0.0, blocks: [1, 1], downsampling: [1, 2], dims: [16, 32], heads: [2, 2], "
    "feedforward: [32, 64], kernels: [5, 3], query_dim: 8, value_dim: 4, position_dim: 2, table_dim: 8, straight_steps: 4}",
    "student.cif.context_layers=1",
    "training.optimiser=scaled_adam",
    "training.schedule=eden",
)


def silent(step: int, values: object) -> None:
    pass


class Slow:
    """One parameter as a list of numbers; algorithm 1, with the limits that its docstring states."""

    def __init__(self, values: Tensor, betas: tuple[float, float]) -> None:
        self.values = values.flatten().tolist()
        self.betas, self.steps = betas, 0
        self.means, self.squares = ([0.0] * len(self.values) for _ in range(2))
        self.mean = self.square = 0.0

    def update(self, gradient: Tensor, lr: float) -> None:
        first, second = self.betas
        self.steps += 1
        correction = math.sqrt(1 - second**self.steps) / (1 - first**self.steps)
        slopes = gradient.flatten().tolist()
        size = math.sqrt(sum(value**2 for value in self.values) / len(self.values))
        slope = sum(value * slope for value, slope in zip(self.values, slopes))
        self.mean = first * self.mean + (1 - first) * slope
        self.square = second * self.square + (1 - second) * slope**2
        growth = -ETA * lr * correction * self.mean / (math.sqrt(self.square) + 1e-8)
        if size < LEAST:
            growth = max(growth, 0.0)
        if size > MOST:
            growth = -ETA * lr
        share = max(size, LEAST)
        if len(self.values) == 1:
            share, growth = ETA, 0.0
        for place, slope in enumerate(slopes):
            self.means[place] = first * self.means[place] + (1 - first) * slope
            self.squares[place] = second * self.squares[place] + (1 - second) * slope**2
            change = self.means[place] / (math.sqrt(self.squares[place]) + 1e-8)
            self.values[place] += growth * self.values[place] - lr * share * correction * change


FIRST = {
    "matrix": lambda: 0.1 * torch.randn(3, 4),
    "vector": lambda: torch.randn(5),
    "number": lambda: torch.randn(1),
    "scalar": lambda: torch.randn(()),
    "zeros": lambda: torch.zeros(3),
    "tiny": lambda: 1e-6 * torch.randn(4),
    "huge": lambda: 5.0 * torch.randn(2, 3) + 5.0,
}


@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.0, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_algorithm_1(betas: tuple[float, float], seed: int) -> None:
    torch.manual_seed(seed)
    parameters = {name: nn.Parameter(make().double()) for name, make in FIRST.items()}
    slow = {name: Slow(each.detach(), betas) for name, each in parameters.items()}
    half, rest = ["vector", "number"], [name for name in FIRST if name not in ("vector", "number")]
    groups = [{"params": [parameters[name] for name in names]} for names in (half, rest)]
    optimizer = ScaledAdam(groups, 0.05, betas)
    for step in range(6):
        lr = 0.05 / (step + 1)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr / 2, lr
        for name, each in parameters.items():
            # Some gradients are missing now and then: their parameters stay, and count fewer updates.
            each.grad = None if step == 2 and name in ("vector", "matrix") else torch.randn_like(each)
            if each.grad is not None:
                slow[name].update(each.grad, lr / 2 if name in half else lr)
        optimizer.step()
        for name, each in parameters.items():
            expected = torch.tensor(slow[name].values, dtype=torch.float64).view_as(each)
            torch.testing.assert_close(each.detach(), expected, rtol=1e-9, atol=1e-14, msg=name)


@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_relative_changes_do_not_depend_on_the_size(scale: float) -> None:
    """Of a parameter that is `scale` times as large while its effect is the same, so that its gradients are smaller."""
    first, gradients = 0.05 * torch.randn(4, 4).double(), torch.randn(5, 4, 4).double()
    ends = []
    for factor in (1.0, scale):
        parameter = nn.Parameter(first * factor)
        optimizer = ScaledAdam([parameter], 0.04, eps=0.0)
        for gradient in gradients:
            parameter.grad = gradient / factor
            optimizer.step()
        ends.append(parameter.detach() / factor)
    torch.testing.assert_close(ends[1], ends[0])
    assert (ends[0] - first).abs().max() > 1e-3


def test_the_recipe_chooses() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    assert isinstance(make_optimiser([{"params": [parameter]}], LoopConfig()), torch.optim.AdamW)
    config = LoopConfig(optimiser="scaled_adam", betas=[0.8, 0.9])
    found = make_optimiser([{"params": [parameter]}], config)
    assert isinstance(found, ScaledAdam)
    assert found.param_groups[0]["betas"] == (0.8, 0.9)


class Parts:
    """A stack of a Zipformer, whose parameters are divided unevenly, single numbers among them, and what it learns from."""

    def __init__(self, divided: bool) -> None:
        torch.manual_seed(0)
        config = ZipformerConfig(
            blocks=[1], downsampling=[3], dims=[12], heads=[3], feedforward=[8], kernels=[3], query_dim=4, value_dim=3,
            position_dim=2, table_dim=6, straight_steps=2, dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        # The gradient of a bias of keys is nothing but rounding, of which Adam makes whole steps in float32.
        self.module = ZipformerStack(config).double()
        self.batches = [torch.randn(2, 7, 12, dtype=torch.float64) for _ in range(6)]
        if divided:  # block by block, as accelerate does it
            mesh = dist.init_device_mesh("cpu", (2,))
            for each in (*self.module.blocks, self.module):
                fully_shard(each, mesh=mesh)
        self.optimizer = ScaledAdam(self.module.parameters(), 0.05)

    def learn(self, first: int, last: int) -> dict[str, Tensor]:
        for batch in self.batches[first:last]:
            self.module(batch, torch.tensor([7, 4])).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return whole_weights(self.module)

    def state(self) -> dict[str, Tensor]:
        return whole_optimizer(self.optimizer)


def learn_divided(process: int) -> dict[str, Any]:
    dist.init_process_group("gloo")
    parts = Parts(divided=True)
    before, state = parts.learn(0, 3), parts.state()
    assert all(isinstance(each, DTensor) for each in parts.module.parameters())
    parts.optimizer.state.clear()
    load_optimizer(parts.optimizer, {name: each.clone() for name, each in state.items()})
    return {"before": before, "state": state, "after": parts.learn(3, 6)}


def test_parameters_divided_among_processes_learn_what_whole_ones_learn(tmp_path: Path) -> None:
    run_in_two(tmp_path, {"divided": (learn_divided,)})
    whole = Parts(divided=False)
    expected = {"before": whole.learn(0, 3), "state": whole.state(), "after": whole.learn(3, 6)}
    for found in results_of(tmp_path, "divided"):
        for part, tensors in expected.items():
            assert tensors.keys() == found[part].keys()
            for name, value in tensors.items():
                assert found[part][name].shape == value.shape
                torch.testing.assert_close(
                    found[part][name], value, rtol=1e-6, atol=1e-9, msg=f"{part} {name}"
                )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in trainer.module.student.named_parameters()}


def test_a_resumed_run_is_the_unbroken_one(cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
    """Over epochs, with accumulation, rates and a frozen part, of a Zipformer; dropout is on."""

    def recipe(steps: int) -> Recipe:
        return read_recipe(
            *ZIPFORMER, "training.peak_lr=0.02", "training.eden_steps=3", "training.eden_epochs=1",
            "training.rates={encoder: 0.5}", "training.freeze=[ctc]", "training.accumulation=2",
            "training.evaluate_steps=3", "training.log_steps=1", f"training.steps={steps}",
        )  # fmt: skip

    whole, first, second = (
        trainer_of(recipe(steps), tmp_path / folder, cuts)
        for steps, folder in ((6, "whole"), (3, "broken"), (6, "broken"))
    )
    before = weights(whole)
    for each in (whole, first):
        torch.manual_seed(1)  # of dropout; the third takes it from the checkpoint
        each.run(silent)
    assert second.resume() == []
    second.run(silent)
    assert whole.position.epoch > 1
    expected = weights(whole)
    for name, each in weights(second).items():
        torch.testing.assert_close(each, expected[name], rtol=1e-5, atol=1e-7, msg=name)
        moved = not torch.equal(expected[name], before[name])
        assert moved == (not name.startswith("ctc.")), name
    rates = [line["lr"] for line in read_metrics(tmp_path / "broken" / "metrics.jsonl") if "lr" in line]
    assert rates == [
        line["lr"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "lr" in line
    ]
    assert len(rates) == 6


def test_it_learns(cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
    recipe = read_recipe(
        *ZIPFORMER, "training.steps=40", "training.evaluate_steps=40",
        "training.peak_lr=0.045", "training.warmup_steps=5", "training.log_steps=20",
    )  # fmt: skip
    trainer = trainer_of(recipe, tmp_path, cuts.subset(first=6))
    trainer.run(silent)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    for name, each in trainer.module.named_parameters():
        assert each.isfinite().all(), name
        if "bypass" in name:
            assert ((each >= 0.2) & (each <= 1.0)).all(), name
