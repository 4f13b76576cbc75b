"""Several `retort train` at once, each a process of its own with a bar drawn from its `metrics.jsonl`."""

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
"""Seconds between looks at the trainings."""
PATIENCE = 60.0
"""Seconds that a training has to write its checkpoint when it is told to stop."""


@dataclass(frozen=True)
class Training:
    """One `retort train`, or one `retort evaluate` of what another trained.

    Attributes:
        name: of the experiment, or of the scoring.
        steps: updates that it will make; 0 for a scoring.
        arguments: the verb and its own; those of a training lead to an experiment of that name.
        after: trainings of the same call that have to succeed first.
    """

    name: str
    steps: int
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()


class Process(Protocol):
    """What runs a training, as :class:`subprocess.Popen` does it."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[Training, Path, Mapping[str, str]], Process]
"""Starts a training that prints to the log with this path, with these variables in its environment.

Raises BlockingIOError while another process trains the same experiment.
"""
Ended = Callable[[Training, UserError | None], UserError | None]
"""Called with a training that has ended and what went wrong, if anything; what it returns takes the place of that."""


def start_here(training: Training, log: Path, environment: Mapping[str, str]) -> Process:
    """Start it as a process of this machine.

    Its log stays locked while the process lives, even when its parent was killed: two processes would spoil
    the experiment. One that somebody else trains is not started either.
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
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children in their own way
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
    """Train, as many at the same time as there are places; each goes on where it stopped.

    What a training prints goes to `root/NAME.log`. Ctrl-C, SIGTERM and SIGHUP stop all of them; each
    writes a checkpoint first. An experiment that another process is training is waited for.

    Args:
        root: of the experiments, where `retort train` puts them.
        trainings: in the order in which they get a place; those that others wait for stand before them.
        places: the environment variables of each.

    Returns:
        By name, what went wrong with those that failed; the others have a model and a score.
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
    """Which trainings wait, which run, and what went wrong."""

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
        # Where they take turns, those that are done make room on the screen for those that run.
        self.turns = len(trainings) > len(places)
        self.all = progress.add_task("all", total=len(trainings), values="", visible=self.turns)

    def step(self) -> bool:
        """Look at what runs, begin what can; whether there is something left."""
        for run in list(self.runs):
            if run.look(self.progress):
                self.runs.remove(run)
                self.free.append(run.place)
                self._end(run.training, run.error())
                self.progress.update(run.task, visible=not self.turns)
        for training in list(self.waiting):
            if broken := [name for name in training.after if name in self.failed]:
                self.waiting.remove(training)
                self._end(training, UserError(f"not begun, for {broken[0]} failed", where=training.name))
        begun = {run.training.name for run in self.runs} | {each.name for each in self.waiting}
        for training in list(self.waiting):
            if self.free and not begun.intersection(training.after):
                self.waiting.remove(training)
                run = _Run(self.root, training, self.free.pop(0), self.start, self.progress)
                self.runs.append(run)  # before it has a process, so that none is ever left behind
                run.begin()
        return bool(self.runs or self.waiting)

    def _end(self, training: Training, error: UserError | None) -> None:
        error = self.ended(training, error)
        if error is not None:
            self.failed[training.name] = error
        self.progress.advance(self.all)


class _Run:
    """A training in its place; without a process of ours while another one trains the same."""

    def __init__(
        self, root: Path, training: Training, place: Mapping[str, str], start: Start, progress: Progress
    ) -> None:
        self.training, self.place, self.start = training, place, start
        self.metrics = root / training.name / "metrics.jsonl"
        self.log = root / f"{training.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process: Process | None = None
        self._told = len(_messages(self._lines()))
        self.task = progress.add_task(training.name, total=training.steps, values="starting")

    def look(self, progress: Progress) -> bool:
        """Draw where it stands; whether it has ended. Evaluations and warnings are printed once."""
        self.begin()
        state = self.process.poll() if self.process else None
        lines = self._lines()
        messages = _messages(lines)
        for text in messages[self._told :]:
            progress.console.print(f"{self.training.name}  {text}", highlight=False)
        self._told = len(messages)  # fewer than before where a resumed run dropped lines
        step = max((line["step"] for line in lines), default=0)
        if state is not None:
            values = "done" if state == 0 else "failed"
        elif self.process is None:
            values = "in the hands of another process"
        elif step >= self.training.steps:
            values = "scoring"
        else:
            values = next(
                (f"loss {line['loss']:.2f}" for line in reversed(lines) if "loss" in line), "starting"
            )
        progress.update(self.task, completed=step, values=values)
        return state is not None

    def error(self) -> UserError | None:
        """Why it failed, with the last line that it printed; None if it did not."""
        state = self.process.poll() if self.process else None
        if not state:
            return None
        how = f"exit code {state}" if state > 0 else f"killed by {signal.Signals(-state).name}"
        printed = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        last = next((line for line in reversed(printed) if line), "it printed nothing")
        what = "training" if self.training.steps else "scoring"
        return UserError(f"{what} failed ({how}): {last.removeprefix('retort: ')}", where=self.log)

    def begin(self) -> None:
        """Start its process, unless another one trains the same."""
        if self.process is None:
            with suppress(BlockingIOError):
                self.process = self.start(self.training, self.log, self.place)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.metrics)
        except FileNotFoundError:  # also for a moment while a resumed run rewrites it
            return []


def _messages(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Evaluations and warnings, in words."""
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
    """End what still runs, and wait until it has ended; a second Ctrl-C does not wait for checkpoints."""
    processes = [run.process for run in runs if run.process and run.process.poll() is None]
    if processes:
        console.print("stopping; each training writes a checkpoint first")
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
    """SIGTERM and SIGHUP end this process as an exception does, so that its children are stopped too."""
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
