"""The loop: updates, logs, free-running evaluations, checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from lhotse import CutSet

from retort.config import Recipe
from retort.distill.row import Tally
from retort.errors import UserError
from retort.teachers.teacher import Teacher
from retort.training.batches import Batch, UtteranceDataset, epoch_batches, make_sampler
from retort.training.checkpoints import CheckpointFolder
from retort.training.log import MetricsLog
from retort.training.module import TrainingModule, read_signals
from retort.training.schedule import learning_rate

Report = Callable[[int, dict[str, float]], None]
"""Called with the step and the values that were just logged."""


@dataclass
class Position:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        step: updates made.
        epoch: counted from 0.
        batches: of this epoch, already used by this process.
        scores: validation CER of the checkpoints, by step.
        rejected: utterances that could not be used, and why.
        seconds: spent in updates, over all sessions of the run.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate set up for the recipe's device and precision.

    Raises:
        UserError: fp16 without a GPU.
    """
    torch.set_num_threads(recipe.training.threads)
    cpu = recipe.training.device == "cpu" or not torch.cuda.is_available()
    if cpu and recipe.training.precision == "fp16":
        raise UserError(
            "training.precision is fp16 without a GPU", remedy="Set training.precision: bf16 or fp32"
        )
    precision = {"fp32": "no"}.get(recipe.training.precision, recipe.training.precision)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    AcceleratorState._reset_state()  # else a second run in one process could not choose its own precision
    return Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[unused])


class Trainer:
    """Trains one student.

    Args:
        recipe: what to do.
        folder: of the experiment; checkpoints and `metrics.jsonl` go there.
        module: student and objective.
        teachers: by name; they stay outside the module, frozen.
        dataset: turns cuts into batches.
        cuts: to learn from.
        validate: free-running error rates of the student as it stands; `cer` chooses checkpoints.
        accelerator: devices and processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        module: TrainingModule,
        teachers: Mapping[str, Teacher],
        dataset: UtteranceDataset,
        cuts: CutSet,
        validate: Callable[[], dict[str, float]],
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.config, self.folder = recipe, recipe.training, folder
        self.teachers, self.dataset, self.validate = teachers, dataset, validate
        self.accelerator = accelerator
        self.module = module
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=self.config.peak_lr,
            betas=(self.config.betas[0], self.config.betas[1]),
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)
        self.sampler = make_sampler(cuts, recipe, accelerator.process_index, accelerator.num_processes)
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.position = Position()
        self.tallies: dict[str, Tally] = {}

    def resume(self) -> int:
        """Go on from the last checkpoint, if there is one; returns the step."""
        if steps := self.checkpoints.steps():
            student, objective = self.module.student, self.module.objective
            state = self.checkpoints.restore(steps[-1], student, objective, self.optimizer)
            self.position = Position(**state)
        return self.position.step

    def run(self, report: Report) -> None:
        """Train up to `training.steps`, calling `report` after each logged step and each evaluation."""
        with contextlib.ExitStack() as stack:
            log = None
            if self.accelerator.is_main_process:
                log = stack.enter_context(contextlib.closing(MetricsLog(self.folder, self.position.step)))
            for group in self._groups():
                if self.position.step >= self.config.steps:
                    break
                values = self._update(group)
                step = self.position.step
                if step % self.config.log_steps == 0 or step == self.config.steps:
                    values = {**self._drain_tallies(), **values, "epoch": self.position.epoch}
                    self._log(log, report, values)
                if step % self.config.evaluate_steps == 0 or step == self.config.steps:
                    self._log(log, report, self._evaluate())

    def _groups(self) -> Iterator[list[Batch]]:
        """Batches of as many epochs as it takes, `training.accumulation` at a time."""
        for epoch in itertools.count(self.position.epoch):
            self.position.epoch = epoch
            whole = self.position.batches == 0
            batches = epoch_batches(self.dataset, self.sampler, epoch, self.position.batches)
            usable = 0
            while group := list(itertools.islice(batches, self.config.accumulation)):
                self.position.batches += len(group)
                for batch in group:
                    self.position.rejected.update({each.id: each.reason for each in batch.rejected})
                group = [batch for batch in group if batch.ids]
                usable += len(group)
                if group:
                    yield group
            if not usable and whole:
                raise self._nothing_usable()
            self.position.batches = 0

    def _nothing_usable(self) -> UserError:
        reasons = list(self.position.rejected.items())
        first = f"; the first of {len(reasons)} is {reasons[0][0]}: {reasons[0][1]}" if reasons else ""
        return UserError(
            f"no training utterance can be used{first}", where=self.recipe.name, remedy="Mend data.train"
        )

    def _update(self, group: list[Batch]) -> dict[str, float]:
        started = time.perf_counter()
        accelerator, step = self.accelerator, self.position.step
        rate = learning_rate(step, self.config)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        group = [batch.to(accelerator.device) for batch in group]
        tokens = sum(int(batch.token_lengths.sum()) for batch in group)
        counts = torch.tensor([tokens, sum(len(batch.ids) for batch in group)], device=accelerator.device)
        counts = accelerator.reduce(counts, "sum").clamp(min=1)
        self.wrapped.train()
        share = torch.zeros((), device=accelerator.device)
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                with accelerator.autocast():
                    signals = read_signals(
                        self.teachers, self.module.objective.needs, batch, accelerator.device
                    )
                    output = self.wrapped(batch, signals, step)
                loss = output.token_sum / counts[0] + output.utterance_sum / counts[1]
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages over processes
            share += loss.detach()
            self._tally(output.tallies)
        total = float(accelerator.reduce(share, "sum"))
        norm = float(accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip) or 0.0)
        # fp16 overflows now and then: its scaler leaves that update out by itself.
        if not math.isfinite(total) or not (math.isfinite(norm) or self.config.precision == "fp16"):
            raise UserError(
                f"the loss is not finite at step {step}",
                where=self.folder,
                remedy="Lower training.peak_lr or use training.precision=fp32; the last checkpoint is whole",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.seconds += time.perf_counter() - started
        return {"loss": total, "lr": rate, "grad_norm": norm, "seconds": self.position.seconds}

    def _tally(self, tallies: dict[str, Tally]) -> None:
        for name, (value, count) in tallies.items():
            before = self.tallies.get(name, Tally(torch.zeros_like(value), 0))
            self.tallies[name] = Tally(before.sum + value, before.count + count)

    def _drain_tallies(self) -> dict[str, float]:
        """Means over the updates and processes since the last call."""
        if not self.tallies:
            return {}
        names, tallies = zip(*sorted(self.tallies.items()))
        pairs = torch.tensor([[float(value), float(count)] for value, count in tallies], dtype=torch.float64)
        pairs = self.accelerator.reduce(pairs.to(self.accelerator.device), "sum")
        self.tallies = {}
        return {name: value / max(count, 1.0) for name, (value, count) in zip(names, pairs.tolist())}

    def _evaluate(self) -> dict[str, float]:
        self.module.eval()
        with self.accelerator.autocast():
            values = {f"validation.{name}": value for name, value in self.validate().items()}
        self.position.scores[str(self.position.step)] = values["validation.cer"]
        if self.accelerator.is_main_process:
            self._save()
        self.accelerator.wait_for_everyone()
        return values

    def _save(self) -> None:
        step = self.position.step
        before = self.checkpoints.steps()
        self.checkpoints.save(
            step, self.module.student, self.module.objective, self.optimizer, vars(self.position)
        )
        chosen = self.chosen()
        for each in before:
            self.checkpoints.drop_training_state(each)
            if each not in chosen:
                self.checkpoints.remove(each)

    def chosen(self) -> list[int]:
        """Steps of the checkpoints that the final model is averaged from: the best ones, or the last."""
        there = self.checkpoints.steps()
        if self.config.keep == "best":
            there = sorted(there, key=lambda step: (self.position.scores.get(str(step), float("inf")), -step))
            return sorted(there[: self.config.checkpoints])
        return there[-self.config.checkpoints :]

    def _log(self, log: MetricsLog | None, report: Report, values: dict[str, Any]) -> None:
        if log is not None:
            log.write(self.position.step, values)
        report(self.position.step, values)
