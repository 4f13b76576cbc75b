"""What all verbs share: where they write, what they ask for, how they end."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.common.console import PlainConsole
from retort.common.errors import UserError, print_error, printable
from retort.common.files import check_local, check_writable

if TYPE_CHECKING:
    from retort.common.progress import TrainingProgress
    from retort.evaluation.evaluate import Evaluation
    from retort.evaluation.scoring import Score

console = PlainConsole()
EXPERIMENTS = Path("exp")

TERMINATED = 143
"""Exit code of a command that SIGTERM stopped."""


def local_path(text: str) -> Path:
    """The path of a file or folder of this machine, as typer's `parser` of arguments and options.

    Raises:
        UserError: an address (`https://...`), which as a path would lose a slash.
    """
    check_local(text)
    return Path(text)


local_path.__name__ = "path"  # what --help shows of it


def finite(value: float | None) -> float | None:
    """As typer's `callback` of numbers: NaN and infinity, which every comparison lets pass, are refused.

    Raises:
        typer.BadParameter: it is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def check_places(*folders: Path | None, results: Path | None = None) -> None:
    """Refuse, before the work, folders and a file of results that cannot be written; None is none.

    Raises:
        UserError: with the first that cannot.
    """
    for folder in folders:
        if folder is not None:
            check_writable(folder)
    if results is not None:
        check_writable(results.parent)
        if results.is_dir():
            raise UserError("a folder, not a file of results", where=results, remedy="Name a file in it")


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a packaged recipe, or a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="a.b=c", help="Settings over the YAML file's.")
]


def tell(text: str, style: str | None = None) -> None:
    """One line on the screen, never broken: paths are there to be copied."""
    console.print(printable(text), style=style, soft_wrap=True)


def print_change(before: Score, after: Score) -> None:
    """What training gained or lost against the model that it started from."""
    from retort.evaluation.bootstrap import compare

    try:
        rows = [compare(before, after, measure=measure) for measure in ("cer", "wer")]
    except UserError as error:
        tell(f"the start cannot be compared: {error}", style="yellow")
        return
    parts = [
        f"{row.measure.upper()} {row.first:.2%} before, {row.difference:+.2%} ({row.low:+.2%} to {row.high:+.2%})"
        for row in rows
    ]
    verdict = "lost" if rows[0].low > 0 else "gained" if rows[0].high < 0 else "no clear change"
    tell(f"against training.init: {'  '.join(parts)}; {verdict}")


def print_evaluation(source: str, evaluation: Evaluation) -> None:
    """Rates with intervals, counts, where they were written."""
    score, bounds = evaluation.score, evaluation.intervals
    rates = "  ".join(
        f"{name.upper()} {bounds[name].rate_text} ({bounds[name].range_text})".removesuffix(" ()")
        for name in ("cer", "wer")
    )
    counts = score.words
    tell(f"{source}: {rates}")
    tell(
        f"{len(score.utterances):,} utterances, {len(score.speakers)} speakers; of {counts.reference:,} words "
        f"{counts.substitutions:,} substituted, {counts.deletions:,} deleted, {counts.insertions:,} inserted",
    )
    if score.real_time_factor is not None and score.core_seconds is not None:
        workers = f" with {score.workers} at work" if score.workers > 1 else ""
        tell(
            f"an hour of speech costs {score.core_seconds:,.0f} s of a core (real-time factor "
            f"{score.real_time_factor:.3f}{workers})"
        )
    if (frames := evaluation.frames) is not None:
        tell(
            f"the aligned senone is the first guess in {frames.rate:.2%} of {frames.frames:,} frames of "
            f"{frames.utterances:,} utterances"
        )
    if evaluation.options.suffix:
        sizes = ", ".join(f"{part} {count:,}" for part, count in evaluation.parameters.items())
        tell(f"parameters at run time: {sizes}")
    if evaluation.options.rescore and evaluation.short:
        beam = evaluation.options.beam
        tell(f"{evaluation.short:,} utterances had fewer than {beam} hypotheses to be ranked anew")
    tell(f"written to {evaluation.folder}")
    if note := bounds["wer"].note:
        tell(note, style="yellow")
    say_rejected(len(evaluation.rejected), str(evaluation.folder / "rejected.tsv"), "could not be used")


def say_rejected(count: int, where: str, what: str = "left out") -> None:
    """How many utterances were not used, if any, and which file tells why."""
    if count:
        tell(f"{count} utterances {what}; {where} lists them with the reasons", style="yellow")


def first_process() -> bool:
    """Whether this process speaks; under `torchrun` the others only train."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def training_screen(steps: int) -> Iterator[TrainingProgress]:
    """The bar of a training of so many updates; SIGTERM, once it has saved, ends the command in one line."""
    from retort.common.progress import TrainingProgress
    from retort.engine.loop import Stopped

    try:
        with TrainingProgress(console if first_process() else PlainConsole(quiet=True), steps) as display:
            try:
                yield display
            except UserError:
                # Of a process that has ended torchrun tells the others by SIGTERM: there is a line to be said first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise
    except Stopped as stopped:
        print_error(str(stopped))
        sys.exit(TERMINATED)
