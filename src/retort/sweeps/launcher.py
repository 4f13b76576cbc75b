"""Runs several `retort train` processes in parallel, with progress bars from their `metrics.jsonl`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from retort.common.console import PlainColumn
from retort.common.errors import UserError
from retort.common.locks import is_busy
from retort.engine.log import read_metrics

COMMAND = (sys.executable, "-m", "retort.cli")
POLL = 0.5
"""Seconds between two checks of the trainings."""
PATIENCE = 60.0
"""Seconds that a training has to write its checkpoint after SIGTERM."""


@dataclass(frozen=True)
class Training:
    """One `retort train`, or one `retort evaluate` of a trained model.

    Attributes:
        name: name of the experiment, or of the scoring.
        steps: number of updates; 0 for a scoring.
        arguments: the verb and its arguments; those of a training give the experiment this name.
        after: trainings of the same call that must succeed first.
    """

    name: str
    steps: int
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()


class Process(Protocol):
    """The part of the interface of :class:`subprocess.Popen` that is used here."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[Training, Path, Mapping[str, str]], Process]
"""Starts a training with a log file and additional environment variables.

Raises BlockingIOError while another process trains the same experiment.
"""
Ended = Callable[[Training, UserError | None], UserError | None]
"""Called with a training that has ended and its error, if any; its result replaces the error."""


def start_here(training: Training, log: Path, environment: Mapping[str, str]) -> Process:
    """Start a training as a local process.

    The log is locked while the process lives, even if its parent was killed, so that two processes never train the same
    experiment. An experiment that another process trains is not started.
    """
    if training.steps and is_busy(log.with_name(log.name.removesuffix(".log"))):
        raise BlockingIOError
    with log.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return subprocess.Popen(
            [*COMMAND, *training.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,  # Ctrl-C reaches only the parent, which terminates its children
        )


def run_trainings(
    console: Console,
    root: Path,
    trainings: Sequence[Training],
    places: Sequence[Mapping[str, str]],
    *,
    start: Start = start_here,
    ended: Ended = lambda _, error: error,
) -> dict[str, UserError]:
    """Run trainings, one in each place at a time; each resumes from its last checkpoint.

    The output of a training is written to `root/NAME.log`. Ctrl-C, SIGTERM and SIGHUP stop all trainings after they
    have written a checkpoint. If another process trains the same experiment, its end is awaited.

    Args:
        root: folder of the experiments, as for `retort train`.
        trainings: in the order of starting; dependencies come first.
        places: environment variables of each place.

    Returns:
        Errors of the failed trainings by name; the others have a model and a score.
    """
    with ExitStack() as stack:
        stack.enter_context(_signals_raise())
        scheduler = _Scheduler(root, trainings, places, start, ended, _bars(console))
        stack.callback(_stop, scheduler.runs, console)
        stack.enter_context(scheduler.progress)
        while scheduler.step():
            time.sleep(POLL)
    return scheduler.failed


class _Scheduler:
    """The waiting, running and failed trainings."""

    def __init__(
        self,
        root: Path,
        trainings: Sequence[Training],
        places: Sequence[Mapping[str, str]],
        start: Start,
        ended: Ended,
        progress: Progress,
    ) -> None:
        self.root, self.start, self.ended, self.progress = root, start, ended, progress
        self.waiting, self.free = list(trainings), list(places)
        self.runs: list[_Run] = []
        self.failed: dict[str, UserError] = {}
        # With fewer places than trainings, the bars of finished trainings are hidden.
        self.turns = len(trainings) > len(places)
        self.all = progress.add_task("all", total=len(trainings), values="", visible=self.turns)

    def step(self) -> bool:
        """Update running trainings and start waiting ones; return whether any is left."""
        for run in list(self.runs):
            if run.update(self.progress):
                self.runs.remove(run)
                self.free.append(run.place)
                self._end(run.training, run.error())
                self.progress.update(run.task, visible=not self.turns)
        for training in list(self.waiting):
            if broken := [name for name in training.after if name in self.failed]:
                self.waiting.remove(training)
                self._end(training, UserError(f"not started, because {broken[0]} failed", where=training.name))
        begun = {run.training.name for run in self.runs} | {each.name for each in self.waiting}
        for training in list(self.waiting):
            if self.free and not begun.intersection(training.after):
                self.waiting.remove(training)
                run = _Run(self.root, training, self.free.pop(0), self.start, self.progress)
                self.runs.append(run)  # before the process starts, so that it is always terminated
                run.start_process()
        return bool(self.runs or self.waiting)

    def _end(self, training: Training, error: UserError | None) -> None:
        error = self.ended(training, error)
        if error is not None:
            self.failed[training.name] = error
        self.progress.advance(self.all)


class _Run:
    """A training in a place; without its own process while another one trains the same experiment."""

    def __init__(
        self, root: Path, training: Training, place: Mapping[str, str], start: Start, progress: Progress
    ) -> None:
        self.training, self.place, self.start = training, place, start
        self.metrics = root / training.name / "metrics.jsonl"
        self.log = root / f"{training.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process: Process | None = None
        self._printed = len(_messages(self._lines()))
        self.task = progress.add_task(training.name, total=training.steps, values="starting")

    def update(self, progress: Progress) -> bool:
        """Update the progress bar and print new evaluations and warnings; return whether the training has ended."""
        self.start_process()
        state = self.process.poll() if self.process else None
        lines = self._lines()
        messages = _messages(lines)
        for text in messages[self._printed :]:
            progress.console.print(f"{self.training.name}  {text}", highlight=False)
        self._printed = len(messages)  # fewer than before where a resumed run dropped lines
        step = max((line["step"] for line in lines), default=0)
        if state is not None:
            values = "done" if state == 0 else "failed"
        elif self.process is None:
            values = "trained by another process"
        elif step >= self.training.steps:
            values = "scoring"
        else:
            values = next(
                (f"loss {line['loss']:.2f}" for line in reversed(lines) if "loss" in line), "starting"
            )
        progress.update(self.task, completed=step, values=values)
        return state is not None

    def error(self) -> UserError | None:
        """The error of a failed training, with the last line of its log; None if it has not failed."""
        state = self.process.poll() if self.process else None
        if not state:
            return None
        how = f"exit code {state}" if state > 0 else f"killed by {signal.Signals(-state).name}"
        printed = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        last = next((line for line in reversed(printed) if line), "it printed nothing")
        what = "training" if self.training.steps else "scoring"
        return UserError(f"{what} failed ({how}): {last.removeprefix('retort: ')}", where=self.log)

    def start_process(self) -> None:
        """Start the process, unless another one trains the same experiment."""
        if self.process is None:
            with suppress(BlockingIOError):
                self.process = self.start(self.training, self.log, self.place)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.metrics)
        except FileNotFoundError:  # also for a moment while a resumed run rewrites it
            return []


def _messages(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Evaluations and warnings as text."""
    messages = []
    for line in lines:
        rates = {key.split(".")[1]: value for key, value in line.items() if key.startswith("validation.")}
        text = "  ".join(f"{name.replace('_', ' ').upper()} {value:.2%}" for name, value in rates.items())
        if text or "warning" in line:
            messages.append(f"step {line['step']:>5}  {line.get('warning') or f'validation: {text}'}")
    return messages


def _bars(console: Console) -> Progress:
    return Progress(
        PlainColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        PlainColumn("{task.fields[values]}"),
        console=console,
        refresh_per_second=2,
    )


def _stop(runs: Sequence[_Run], console: Console) -> None:
    """Terminate running trainings and wait for their end; a second Ctrl-C does not wait for checkpoints."""
    processes = [run.process for run in runs if run.process and run.process.poll() is None]
    if processes:
        console.print("stopping: each training writes a checkpoint first")
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait(PATIENCE)
    except (KeyboardInterrupt, SystemExit, subprocess.TimeoutExpired):
        pass
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that the children are stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL  # nohup ignores SIGHUP on purpose
    ]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
