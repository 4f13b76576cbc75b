"""The training loop: updates, logs, evaluations, checkpoints. Subclasses define the batches and the losses."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from retort.common.locks import check_there
from retort.common.tally import Tally
from retort.config.schema import LoopConfig
from retort.engine.checkpoints import CheckpointFolder, Memory, chosen_steps
from retort.engine.health import Health
from retort.engine.log import MetricsLog
from retort.engine.optim import learning_rate, make_optimiser
from retort.engine.parameters import SHARE, constrain, constrained_layers, parameter_groups
from retort.engine.sharding import load_weights, whole, whole_weights
from retort.engine.stored import as_stored, rounded_weights

Report = Callable[[int, dict[str, Any]], None]
"""Called with the step and the values that were just logged."""


def noted(report: Report) -> Callable[[str], None]:
    """A function that reports a line for the user as a note."""
    return lambda line: report(0, {"note": line})


@dataclass
class Position:
    """Position of a run; saved with every checkpoint.

    Attributes:
        step: number of updates so far.
        epoch: counted from 0.
        batches: number of batches of this segment of the epoch that this process has used.
        scores: validation error of the checkpoints by step.
        rejected: unusable training data, with the reason.
        seconds: time spent in updates over all sessions of the run.
        segment: segment of the epoch, for corpora whose epochs are divided.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    segment: int = 0


def check_position(position: Position) -> None:
    """Check the types of a position that was read from a file.

    Raises:
        ValueError: a field is of another type.
    """
    counts = (position.step, position.epoch, position.batches, position.segment)
    if not all(type(each) is int and each >= 0 for each in counts):
        raise ValueError("its step, epoch, batches or segment is not a count")
    if type(position.seconds) not in (int, float) or not 0 <= position.seconds < math.inf:
        raise ValueError(f"its seconds are {position.seconds}")
    for name, kinds in (("scores", (int, float)), ("rejected", (str,))):
        values = getattr(position, name)
        if not isinstance(values, dict) or not all(type(each) in kinds for each in values.values()):
            raise ValueError(f"its {name} are not a table")


def _is_tally(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and type(value[0]) in (int, float)
        and type(value[1]) is int
    )


def process_seed(seed: int, step: int, process: int) -> int:
    """Seed of the random numbers of one of several processes in an update, such as dropout."""
    return zlib.crc32(f"{seed} {step} {process}".encode())


class Stopped(Exception):
    """SIGTERM stopped the run after `step` updates; the same command resumes it."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}; run the same command to resume")


class Movable(Protocol):
    """A batch."""

    def to(self, device: torch.device) -> Any:
        """The batch with its tensors on `device`."""
        ...


BatchT = TypeVar("BatchT", bound=Movable)


class Loop(ABC, Generic[BatchT]):
    """Trains `module` in one or several processes.

    Subclasses define the batches (:meth:`_groups`), the divisors of the losses (:meth:`_counts`) and the losses
    of a batch (:meth:`_forward`).

    Args:
        config: of the training.
        seed: of the recipe.
        folder: of the experiment; checkpoints and `metrics.jsonl` go there.
        module: with a `student`, which is exported, and an `objective`, which is not.
        validate: returns metrics of a student; `criterion` is the one that selects checkpoints, lower is better.
        accelerator: devices and processes.
        groups: parameter groups of :func:`retort.engine.parameters.parameter_groups`; by default
            all parameters have the same learning rate.
        shipped: the student for evaluation and export, if the trained one has other parameters; by default a
            copy of the trained one.

    Attributes:
        merge: converts weights of the trained student to those of :attr:`student`.
        memory: further state that is saved with every checkpoint; None for none.
    """

    criterion: str

    def __init__(
        self,
        config: LoopConfig,
        seed: int,
        folder: Path,
        module: nn.Module,
        validate: Callable[[Any], dict[str, float]],
        accelerator: Accelerator,
        groups: Sequence[dict[str, Any]] | None = None,
        shipped: nn.Module | None = None,
    ) -> None:
        self.merge: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
        if config.stored != "float32":
            self.merge = partial(as_stored, stored=config.stored)
        self.config, self.seed, self.folder = config, seed, folder
        self.validate = validate
        self.accelerator = accelerator
        self.module = cast(Any, module)
        # Complete in every process even if the trained one is sharded: for evaluation and export.
        shipped = copy.deepcopy(self.module.student) if shipped is None else shipped
        self.student = cast(Any, shipped).to(accelerator.device).eval()
        optimizer = make_optimiser(groups or parameter_groups(module, {}), config)
        self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)
        self._constrained = constrained_layers(module)
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.position = Position()
        self.tallies: dict[str, Tally] = {}
        self.health = Health(config)
        self.memory: Memory | None = None
        self.stop_signal = 0
        self._pending: list[str] = []
        self._saved_at, self._saved_step = time.monotonic(), -1

    @abstractmethod
    def _groups(self) -> Iterator[list[BatchT]]:
        """Batches of all epochs in groups of `config.accumulation`; updates `position`."""

    @abstractmethod
    def _counts(self, group: Sequence[BatchT]) -> list[int]:
        """Counts of this process's batches in an update, one for each sum of :meth:`_forward`."""

    @abstractmethod
    def _forward(self, batch: BatchT) -> tuple[list[Tensor], Mapping[str, Tally]]:
        """Sums of losses over a batch, to be divided by the update's counts, and values to log."""

    def _check_logged(self, values: Mapping[str, float]) -> list[str]:
        """Warnings about logged values."""
        return []

    def _check_evaluated(self, values: Mapping[str, float]) -> list[str]:
        """Warnings about an evaluation."""
        return []

    def _write_beside(self) -> None:
        """Write further files of the experiment with every checkpoint; called in the first process."""

    def resume(self) -> list[str]:
        """Resume from the last complete checkpoint, if there is one; return a message for each incomplete one."""
        if self.accelerator.is_main_process:
            self.checkpoints.tidy()
        state, passed_over = self.checkpoints.restore(
            self.module.student, self.module.objective, self.optimizer, self._check_state, self.memory
        )
        if state is not None:
            tallies, health = state.pop("tallies", {}), state.pop("health", None)
            self.position = Position(**state)
            for name, (total, count) in tallies.items():  # they are sums over all processes
                total = torch.tensor(total * self.accelerator.is_main_process, dtype=torch.float64)
                self.tallies[name] = Tally(total, count * self.accelerator.is_main_process)
            if health is not None:
                self.health.restore(health)
            if self.accelerator.is_main_process:  # unfinished if the run was killed after its last checkpoint
                self._clear_checkpoints()
        return passed_over

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ValueError, KeyError or TypeError if a checkpoint's state is invalid."""
        rest = dict(state)
        tallies, health = rest.pop("tallies", {}), rest.pop("health", None)
        check_position(Position(**rest))
        if not all(_is_tally(each) for each in tallies.values()):
            raise ValueError("its tallies are not sums with counts")
        if health is not None:
            Health(self.config).restore(health)

    def run(self, report: Report) -> None:
        """Train up to `training.steps`, calling `report` after each logged step and each evaluation.

        Raises:
            Stopped: SIGTERM was received; a checkpoint was written first.
            UserError: the loss is not finite, or no utterance is usable.
        """
        with contextlib.ExitStack() as stack:
            log = None
            if self.accelerator.is_main_process:
                log = stack.enter_context(contextlib.closing(MetricsLog(self.folder, self.position.step)))
            stack.enter_context(self._delayed_sigterm())
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
            self._warn(log, report, self._check_logged(values))
        if step % self.config.evaluate_steps == 0 or last:
            values = self._evaluate()
            lines: list[dict[str, Any]] = [values]
            lines += [{"warning": text} for text in self._check_evaluated(values)]
            # Written before the checkpoint, so that a resumed run lacks no line.
            for line in lines:
                self._write(log, line)
            self._save()
            for line in lines:
                report(step, line)
        stopping = self._agreed(self.stop_signal)
        overdue = time.monotonic() - self._saved_at > 60 * self.config.checkpoint_minutes
        if (stopping or self._agreed(int(overdue))) and self._saved_step != step:
            self._save()
        if stopping:
            raise Stopped(step)

    @contextlib.contextmanager
    def _delayed_sigterm(self) -> Iterator[None]:
        """Delay SIGTERM until the current update is finished."""
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
        """Whether any process has set the flag, so that all stop and save at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(flag)
        total = self.accelerator.reduce(torch.tensor(flag, device=self.accelerator.device), "sum")
        return bool(total > 0)

    def _update(self, group: list[BatchT]) -> dict[str, float]:
        started = time.perf_counter()
        accelerator, step = self.accelerator, self.position.step
        rate = learning_rate(step, self.config, self.position.epoch)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters[SHARE]
        if accelerator.num_processes > 1:
            # Different seeds for the processes; seeded by the step, so that a resumed run draws the same numbers.
            torch.manual_seed(process_seed(self.seed, step, accelerator.process_index))
        group = [batch.to(accelerator.device) for batch in group]
        counts = torch.tensor(self._counts(group), device=accelerator.device)
        counts = accelerator.reduce(counts, "sum").clamp(min=1)
        self.wrapped.train()
        share = torch.zeros((), device=accelerator.device)
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            synced = contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped)
            with synced, rounded_weights(self.module.student, self.config.stored):
                with accelerator.autocast(), self.health.computing(step, self.module, "the loss"):
                    sums, tallies = self._forward(batch)
                loss = sum((each / count for each, count in zip(sums, counts)), torch.zeros_like(share))
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages over processes
            share += loss.detach()
            self._tally(tallies)
        total = float(accelerator.reduce(share, "sum"))
        # Of the student alone: the projections of rows have gradients of another size, and are not exported.
        norm = float(whole(accelerator.clip_grad_norm_(self.module.student.parameters(), self.config.clip)))
        self.health.check_loss(step, total, norm, self.tallies)
        self.optimizer.step()
        constrain(self._constrained, step)
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.seconds += time.perf_counter() - started
        return {"loss": total, "lr": rate, "grad_norm": norm, "seconds": self.position.seconds}

    def _tally(self, tallies: Mapping[str, Tally]) -> None:
        """Accumulate in float64, which JSON stores exactly."""
        for name, (value, count) in tallies.items():
            before = self.tallies.get(name, Tally(torch.zeros(()), 0))
            self.tallies[name] = Tally(
                before.sum.to(value.device, torch.float64) + value, before.count + count
            )

    def _summed_tallies(self) -> dict[str, tuple[float, int]]:
        """Sums and counts over the updates since the last log line, and over all processes; every process must call this."""
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
        load_weights(self.student, self.merge(whole_weights(self.module.student)))
        step = self.position.step
        self.health.check_weights(step, self.student)
        with self.accelerator.autocast(), self.health.computing(step, self.student, "validation"):
            rates = self.validate(self.student)
        values = {f"validation.{name}": value for name, value in rates.items()}
        if (
            self.accelerator.num_processes > 1
        ):  # rounding may differ, but all must select the same checkpoints
            values = broadcast_object_list([values])[0]
        self.position.scores[str(self.position.step)] = values[f"validation.{self.criterion}"]
        return values

    def _save(self) -> None:
        """Write a checkpoint; the newest two can be resumed from, of the others only selected students are kept."""
        self._saved_at, self._saved_step = time.monotonic(), self.position.step
        self._share_rejected()
        state = {**vars(self.position), "tallies": self._summed_tallies(), "health": self.health.state()}
        student, objective = self.module.student, self.module.objective
        check_there(self.folder)
        self.checkpoints.save(self.position.step, student, objective, self.optimizer, state, self.memory)
        if self.accelerator.is_main_process:
            self._write_beside()
            self._clear_checkpoints()
        self.accelerator.wait_for_everyone()

    def _clear_checkpoints(self) -> None:
        """Remove all but the newest two checkpoints and the students of selected ones."""
        chosen = self.chosen()
        for step in self.checkpoints.steps()[:-2]:
            self.checkpoints.drop_training_state(step)
            if step not in chosen:
                self.checkpoints.remove(step)

    def _share_rejected(self) -> None:
        """Share the rejected utterances between processes; all must call this."""
        if self.accelerator.num_processes > 1:
            gathered: list[dict[str, str]] = gather_object([self.position.rejected])
            self.position.rejected = {name: reason for each in gathered for name, reason in each.items()}

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
            check_there(self.folder)
            log.write(self.position.step, values)
