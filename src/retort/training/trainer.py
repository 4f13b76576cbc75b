"""The loop: updates, logs, free-running evaluations, checkpoints."""

from __future__ import annotations

import contextlib
import copy
import itertools
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from lhotse import CutSet

from retort.config import Recipe
from retort.corpora.cuts import Rejected, write_rejected
from retort.distill.row import Tally
from retort.errors import UserError
from retort.students.cif import CifStudent
from retort.teachers.teacher import Teacher
from retort.training.batches import Batch, UtteranceDataset, epoch_batches, make_sampler
from retort.training.checkpoints import CheckpointFolder, chosen_steps
from retort.training.health import Health
from retort.training.log import MetricsLog
from retort.training.module import TrainingModule, read_signals
from retort.training.schedule import learning_rate
from retort.training.sharding import load_weights, whole, whole_weights

Report = Callable[[int, dict[str, Any]], None]
"""Called with the step and the values that were just logged."""
REJECTED = "rejected.tsv"
"""In an experiment's folder: the training and validation utterances that could not be used, and why."""


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


def freeze(student: CifStudent, parts: Sequence[str]) -> None:
    """Let the parameters whose names begin with one of `parts` learn no more.

    Raises:
        UserError: no parameter begins so, or none would be left.
    """
    names = [name for name, _ in student.named_parameters()]
    for part in parts:
        if not any(name == part or name.startswith(f"{part}.") for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise UserError(f"training.freeze names '{part}'", remedy=f"Parts are {', '.join(tops)}")
    for name, parameter in student.named_parameters():
        if any(name == part or name.startswith(f"{part}.") for part in parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise UserError("training.freeze leaves nothing to learn", remedy="Name fewer parts")


def process_seed(seed: int, step: int, process: int) -> int:
    """Of the random numbers that one of several processes draws in an update, dropout before all."""
    return zlib.crc32(f"{seed} {step} {process}".encode())


class Stopped(Exception):
    """SIGTERM stopped the run after `step` updates; the same command goes on from there."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}; the same command goes on from there")


class Trainer:
    """Trains one student.

    Args:
        recipe: what to do.
        folder: of the experiment; checkpoints and `metrics.jsonl` go there.
        module: student and objective.
        teachers: by name; they stay outside the module, frozen.
        dataset: turns cuts into batches.
        cuts: to learn from.
        validate: free-running error rates of a student; `cer` chooses checkpoints.
        accelerator: devices and processes.
        rejected: utterances of the data that were left out before training; they are listed with those that
            training itself cannot use.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        module: TrainingModule,
        teachers: Mapping[str, Teacher],
        dataset: UtteranceDataset,
        cuts: CutSet,
        validate: Callable[[CifStudent], dict[str, float]],
        accelerator: Accelerator,
        rejected: Sequence[Rejected] = (),
    ) -> None:
        self.recipe, self.config, self.folder = recipe, recipe.training, folder
        self.teachers, self.dataset, self.validate = teachers, dataset, validate
        self.accelerator = accelerator
        self.module, self._left_out = module, rejected
        # Whole in every process, whatever becomes of the one that learns: to evaluate and to ship.
        self.student = copy.deepcopy(module.student).to(accelerator.device).eval()
        freeze(module.student, self.config.freeze)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
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
        self.health = Health(recipe.training)
        self.stop_signal = 0
        self._pending: list[str] = []
        self._saved_at, self._saved_step = time.monotonic(), -1

    def resume(self) -> list[str]:
        """Go on from the last whole checkpoint, if there is one; a line for each that was not whole."""
        if self.accelerator.is_main_process:
            self.checkpoints.tidy()
        state, passed_over = self.checkpoints.restore(
            self.module.student, self.module.objective, self.optimizer
        )
        if state is not None:
            tallies, health = state.pop("tallies", {}), state.pop("health", None)
            self.position = Position(**state)
            for name, (total, count) in tallies.items():  # they are sums over all processes
                total = torch.tensor(total * self.accelerator.is_main_process, dtype=torch.float64)
                self.tallies[name] = Tally(total, count * self.accelerator.is_main_process)
            if health is not None:
                self.health.restore(health)
        return passed_over

    @property
    def rejected(self) -> list[Rejected]:
        """Utterances that were left out before training, and those that training could not use so far."""
        return [*self._left_out, *(Rejected(*each) for each in self.position.rejected.items())]

    def run(self, report: Report) -> None:
        """Train up to `training.steps`, calling `report` after each logged step and each evaluation.

        Raises:
            Stopped: SIGTERM came; a checkpoint was written first.
            UserError: the loss is not finite, or no utterance can be used.
        """
        with contextlib.ExitStack() as stack:
            log = None
            if self.accelerator.is_main_process:
                log = stack.enter_context(contextlib.closing(MetricsLog(self.folder, self.position.step)))
            stack.enter_context(self._listening())
            for group in self._groups():
                if self.position.step >= self.config.steps:
                    break
                values = self._update(group)
                self._after_update(log, report, values)

    def _after_update(self, log: MetricsLog | None, report: Report, values: dict[str, Any]) -> None:
        step, last = self.position.step, self.position.step == self.config.steps
        self._warn(log, report, self._pending)
        self._pending = []
        if step % self.config.log_steps == 0 or last:
            values = {**self._drain_tallies(), **values, "epoch": self.position.epoch}
            self._log(log, report, values)
            self._warn(log, report, self.health.check_logged(step, values))
        if step % self.config.evaluate_steps == 0 or last:
            values = self._evaluate()
            lines: list[dict[str, Any]] = [values]
            lines += [{"warning": text} for text in self.health.check_evaluated(step, values)]
            # Written before the checkpoint: of a kill between the two nothing is missing after the resume.
            for line in lines:
                self._write(log, line)
            self._save()
            for line in lines:
                report(step, line)
        stopping = self._agreed(self.stop_signal)
        overdue = time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes
        if (stopping or self._agreed(int(overdue))) and self._saved_step != step:
            self._save()
        if stopping and not last:
            raise Stopped(step)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM is remembered until the update under way is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(number: int, _: object) -> None:
            self.stop_signal = number

        before = signal.signal(signal.SIGTERM, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _agreed(self, flag: int) -> bool:
        """Whether any process raised the flag, so that all of them stop and save at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(flag)
        total = self.accelerator.reduce(torch.tensor(flag, device=self.accelerator.device), "sum")
        return bool(total > 0)

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
                group = self._usable(group)
                usable += len(group)
                if group:
                    yield group
            if not usable and whole:
                self._share_rejected()
                self._list_rejected()
                raise self._nothing_usable()
            self.position.batches = 0

    def _usable(self, group: list[Batch]) -> list[Batch]:
        """The batches of which any process can use anything: whoever has nothing must not keep others waiting."""
        if self.accelerator.num_processes == 1:
            return [batch for batch in group if batch.ids]
        sizes = torch.tensor([len(batch.ids) for batch in group], device=self.accelerator.device)
        sizes = self.accelerator.reduce(sizes, "sum")
        return [batch for batch, size in zip(group, sizes.tolist()) if size]

    def _share_rejected(self) -> None:
        """Let every process know what any of them could not use; all must call it."""
        if self.accelerator.num_processes > 1:
            gathered: list[dict[str, str]] = gather_object([self.position.rejected])
            self.position.rejected = {name: reason for each in gathered for name, reason in each.items()}

    def _list_rejected(self) -> None:
        if self.accelerator.is_main_process:
            write_rejected(self.rejected, self.folder / REJECTED)

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
        if accelerator.num_processes > 1:
            # All have drawn the same so far; by the step, so that a resumed run draws what an unbroken one does.
            torch.manual_seed(process_seed(self.recipe.seed, step, accelerator.process_index))
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
                    self._pending += self.health.check_teachers(signals)
                    output = self.wrapped(batch, signals, step)
                loss = output.token_sum / counts[0] + output.utterance_sum / counts[1]
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages over processes
            share += loss.detach()
            self._tally(output.tallies)
        total = float(accelerator.reduce(share, "sum"))
        norm = float(whole(accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip)))
        self.health.check_loss(step, total, norm, self.tallies)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.seconds += time.perf_counter() - started
        return {"loss": total, "lr": rate, "grad_norm": norm, "seconds": self.position.seconds}

    def _tally(self, tallies: dict[str, Tally]) -> None:
        """Add up in float64, which a checkpoint's JSON gives back as it was."""
        for name, (value, count) in tallies.items():
            before = self.tallies.get(name, Tally(torch.zeros(()), 0))
            self.tallies[name] = Tally(
                before.sum.to(value.device, torch.float64) + value, before.count + count
            )

    def _summed_tallies(self) -> dict[str, tuple[float, int]]:
        """Sums and counts over the updates since the last log line, and over all processes, which all call it."""
        if not self.tallies:
            return {}
        names, tallies = zip(*sorted(self.tallies.items()))
        pairs = torch.tensor([[float(value), float(count)] for value, count in tallies], dtype=torch.float64)
        pairs = self.accelerator.reduce(pairs.to(self.accelerator.device), "sum")
        return {name: (total, int(count)) for name, (total, count) in zip(names, pairs.tolist())}

    def _drain_tallies(self) -> dict[str, float]:
        """Means over the updates and processes since the last call."""
        sums, self.tallies = self._summed_tallies(), {}
        return {name: total / max(count, 1) for name, (total, count) in sums.items()}

    def _evaluate(self) -> dict[str, float]:
        load_weights(self.student, whole_weights(self.module.student))
        with self.accelerator.autocast():
            rates = self.validate(self.student)
        values = {f"validation.{name}": value for name, value in rates.items()}
        if self.accelerator.num_processes > 1:  # rounding may differ, the choice of checkpoints must not
            values = broadcast_object_list([values])[0]
        self.position.scores[str(self.position.step)] = values["validation.cer"]
        return values

    def _save(self) -> None:
        """Write a checkpoint; the newest two can be resumed from, of the others the chosen keep their student."""
        self._saved_at, self._saved_step = time.monotonic(), self.position.step
        self._share_rejected()
        state = {**vars(self.position), "tallies": self._summed_tallies(), "health": self.health.state()}
        before = self.checkpoints.steps()
        student, objective = self.module.student, self.module.objective
        self.checkpoints.save(self.position.step, student, objective, self.optimizer, state)
        if self.accelerator.is_main_process:
            self._list_rejected()
            chosen = self.chosen()
            for step in before[:-1]:
                self.checkpoints.drop_training_state(step)
                if step not in chosen:
                    self.checkpoints.remove(step)
        self.accelerator.wait_for_everyone()

    def chosen(self) -> list[int]:
        """Steps of the checkpoints that the final model is averaged from: the best ones, or the last."""
        return chosen_steps(self.checkpoints.steps(), self.position.scores, self.config)

    def _warn(self, log: MetricsLog | None, report: Report, warnings: list[str]) -> None:
        for text in warnings:
            self._log(log, report, {"warning": text})

    def _log(self, log: MetricsLog | None, report: Report, values: dict[str, Any]) -> None:
        self._write(log, values)
        report(self.position.step, values)

    def _write(self, log: MetricsLog | None, values: dict[str, Any]) -> None:
        if log is not None:
            log.write(self.position.step, values)
