"""Progress bars of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from retort.common.console import PlainColumn

CountProgress = Callable[[int, int], None]
"""Called with the number of items that are done and their total."""
StageProgress = Callable[[str, int, int], None]
"""The same for one of several stages, whose name comes first."""

SHOWN = {"loss": "loss", "ce": "CE", "ctc": "CTC", "quantity": "quantity", "correct": "accuracy"}


def _progress(console: Console) -> Progress:
    return Progress(
        PlainColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        PlainColumn("{task.fields[values]}"),
        console=console,
        refresh_per_second=2,
        speed_estimate_period=600,  # seconds; long enough for two reports of slow updates
    )


LOG_SECONDS = 60.0
"""Time between two lines about a stage in a log file, where a bar is only drawn at the end."""


class _Stages:
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}
        self._printed = time.monotonic()

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, values="")
        self.progress.update(self.tasks[name], completed=done, total=total)
        if not self.progress.console.is_terminal and time.monotonic() - self._printed >= LOG_SECONDS:
            self._printed = time.monotonic()
            self.progress.console.print(f"{name}: {done:,} of {total:,}", highlight=False)


@contextmanager
def stage_progress(console: Console) -> Iterator[StageProgress]:
    """A function `(stage, done, total)` that draws one bar per stage."""
    with _progress(console) as progress:
        yield _Stages(progress)


class TrainingProgress:
    """A progress bar of updates with the losses, and a printed line for every evaluation."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self.steps = steps
        self.progress = _progress(console)
        self.stage = _Stages(self.progress)
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Show the values logged at `step`."""
        if "note" in values:
            self.progress.console.print(str(values["note"]), highlight=False)
            return
        if "warning" in values:
            self.progress.console.print(
                f"step {step:>6}  {values['warning']}", style="yellow", highlight=False
            )
            return
        if self._task is None:
            # A resumed run starts here, so that its speed excludes earlier updates.
            self._task = self.progress.add_task("training", total=self.steps, completed=step, values="")
        rows = {
            key: value for key, value in values.items() if "." in key and not key.startswith("validation")
        }
        shown = {SHOWN[key]: value for key, value in values.items() if key in SHOWN} | rows
        text = "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
        if text:
            speed = self.progress.tasks[self._task].speed
            text += f"  {speed:.2f} steps/s" if speed else ""
            self.progress.update(self._task, completed=step, values=text)
        rates = {key.split(".")[1]: value for key, value in values.items() if key.startswith("validation.")}
        if rates:
            line = "  ".join(_validated(name, value) for name, value in rates.items())
            how = "validation, free-running" if "cer" in rates else "validation"
            self.progress.console.print(f"step {step:>6}  {how}: {line}", highlight=False)
        if not self.console.is_terminal and text and step % 100 == 0:
            self.console.print(f"step {step:>6}  {text}", highlight=False)


def _validated(name: str, value: float) -> str:
    shown = SHOWN.get(name, name.replace("_", " ").upper())
    return f"{shown} {value:.3f}" if name == "ce" else f"{shown} {value:.2%}"
