"""Several `retort train` at once, each a process of its own with a bar drawn from its `metrics.jsonl`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from retort.config import Recipe
from retort.errors import UserError
from retort.training.log import read_metrics

COMMAND = (sys.executable, "-m", "retort.cli", "train")
POLL = 0.5
"""Seconds between looks at the trainings."""
PATIENCE = 60.0
"""Seconds that a training has to write its checkpoint when it is told to stop."""


def train_side_by_side(
    console: Console, root: Path, recipes: Sequence[Recipe], overrides: Sequence[str] = ()
) -> dict[str, UserError]:
    """Train packaged recipes at the same time, from the working directory; each goes on where it stopped.

    What a training prints goes to `root/NAME.log`. Ctrl-C, SIGTERM and SIGHUP stop all of them; each
    writes a checkpoint first.

    Args:
        root: of the experiments, where `retort train` puts them.
        recipes: as loaded by their names with these overrides.
        overrides: settings over every recipe.

    Returns:
        By name, what went wrong with those that failed; the others have a model and a score.

    Raises:
        UserError: a training of the same experiment is still running.
    """
    runs: list[_Run] = []
    with ExitStack() as stack:
        stack.enter_context(_signals_raise())
        stack.callback(_stop, runs, console)
        for recipe in recipes:
            runs.append(_Run(root, recipe, overrides))
        progress = stack.enter_context(_bars(console))
        tasks = [progress.add_task(run.name, total=run.steps, values="starting") for run in runs]
        running = True
        while running:
            running = any(run.process.poll() is None for run in runs)
            for run, task in zip(runs, tasks):
                step, values = run.look(progress)
                progress.update(task, completed=step, values=values)
            time.sleep(POLL if running else 0.0)
    return {run.name: error for run in runs if (error := run.error()) is not None}


class _Run:
    """One training.

    Its log stays locked while the process lives, even when its parent was killed: two processes would spoil
    the experiment.
    """

    def __init__(self, root: Path, recipe: Recipe, overrides: Sequence[str]) -> None:
        self.name, self.steps = recipe.name, recipe.training.steps
        self.metrics = root / recipe.name / "metrics.jsonl"
        self.log = root / f"{recipe.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._told = len(_messages(self._lines()))
        with self.log.open("a") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.name} is being trained by another process",
                    where=self.log,
                    remedy="Wait for it, or end it",
                ) from None
            log.truncate(0)
            self.process = subprocess.Popen(
                [*COMMAND, self.name, *overrides],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "200"},
                start_new_session=True,  # Ctrl-C is for the parent, which stops its children in their own way
            )

    def look(self, progress: Progress) -> tuple[int, str]:
        """Updates made and what to write beside the bar; evaluations and warnings are printed once."""
        lines = self._lines()
        messages = _messages(lines)
        for text in messages[self._told :]:
            progress.console.print(f"{self.name}  {text}", highlight=False)
        self._told = len(messages)  # fewer than before where a resumed run dropped lines
        step = max((line["step"] for line in lines), default=0)
        loss = next((f"loss {line['loss']:.2f}" for line in reversed(lines) if "loss" in line), "starting")
        state = self.process.poll()
        if state is None:
            return step, "scoring" if step >= self.steps else loss
        return step, "done" if state == 0 else "failed"

    def error(self) -> UserError | None:
        """Why it failed, with the last line that it printed; None if it did not."""
        state = self.process.poll()
        if not state:
            return None
        how = f"exit code {state}" if state > 0 else f"killed by {signal.Signals(-state).name}"
        printed = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        last = next((line for line in reversed(printed) if line), "it printed nothing")
        return UserError(f"training failed ({how}): {last.removeprefix('retort: ')}", where=self.log)

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
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[values]}"),
        console=console,
        refresh_per_second=2,
    )


def _stop(runs: Sequence[_Run], console: Console) -> None:
    """End what still runs, and wait until it has ended; a second Ctrl-C does not wait for checkpoints."""
    processes = [run.process for run in runs if run.process.poll() is None]
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
