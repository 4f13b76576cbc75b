"""What all verbs share: output folders, common arguments, and printing."""

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
"""Exit code of a command that was ended by SIGTERM."""


def local_path(text: str) -> Path:
    """Parse a path of the local file system: typer's `parser` of arguments and options.

    Raises:
        UserError: `text` is a URL (`https://...`).
    """
    check_local(text)
    return Path(text)


local_path.__name__ = "path"  # the type that --help shows


def finite(value: float | None) -> float | None:
    """Refuse NaN and infinity, which pass typer's checks of ranges: typer's `callback` of numbers.

    Raises:
        typer.BadParameter: the value is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def part_of(text: str) -> tuple[int, int]:
    """Parse `I/N`, a part of an array of jobs: typer's `parser` of options.

    Raises:
        typer.BadParameter: it is something else.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= 100_000):
        raise typer.BadParameter(f"{text} is not I/N, such as 1/8 for the first of 8 parts.")
    return int(number), int(count)


part_of.__name__ = "I/N"


def check_places(*folders: Path | None, results: Path | None = None) -> None:
    """Check, before the work starts, that the folders and the file of results can be written. None is skipped.

    Raises:
        UserError: names the first one that cannot be written.
    """
    for folder in folders:
        if folder is not None:
            check_writable(folder)
    if results is not None:
        check_writable(results.parent)
        if results.is_dir():
            raise UserError("is a folder, not a file of results", where=results, remedy="Give a file in it")


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a packaged recipe (aishell1/cif), or path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[+OVERLAY] [a.b=c]",
        help="Overlays, such as +encoder/zipformer, and values of keys of the YAML file, such as training.steps=1000.",
    ),
]


def print_line(text: str, style: str | None = None) -> None:
    """Print one line without wrapping it, so that paths can be copied."""
    console.print(printable(text), style=style, soft_wrap=True)


def print_change(before: Score, after: Score) -> None:
    """Print the difference in error rate between the initial model and the trained one."""
    from retort.evaluation.bootstrap import compare

    try:
        rows = [compare(before, after, measure=measure) for measure in ("cer", "wer")]
    except UserError as error:
        print_line(f"the initial model cannot be compared: {error}", style="yellow")
        return
    parts = [
        f"{row.measure.upper()} {row.first:.2%} before, {row.difference:+.2%} ({row.low:+.2%} to {row.high:+.2%})"
        for row in rows
    ]
    verdict = "lost" if rows[0].low > 0 else "gained" if rows[0].high < 0 else "no clear change"
    print_line(f"against training.init: {'  '.join(parts)}; {verdict}")


def print_evaluation(source: str, evaluation: Evaluation) -> None:
    """Print the error rates with their intervals, the counts, and the output folder."""
    score, bounds = evaluation.score, evaluation.intervals
    rates = "  ".join(
        f"{name.upper()} {bounds[name].rate_text} ({bounds[name].range_text})".removesuffix(" ()")
        for name in ("cer", "wer")
    )
    counts = score.words
    print_line(f"{source}: {rates}")
    print_line(
        f"{len(score.utterances):,} utterances, {len(score.speakers)} speakers; of {counts.reference:,} words "
        f"{counts.substitutions:,} substituted, {counts.deletions:,} deleted, {counts.insertions:,} inserted",
    )
    if score.real_time_factor is not None and score.core_seconds is not None:
        workers = f" with {score.workers} processes" if score.workers > 1 else ""
        print_line(
            f"decoding takes {score.core_seconds:,.0f} core seconds per hour of speech (real-time factor "
            f"{score.real_time_factor:.3f}{workers})"
        )
    if (frames := evaluation.frames) is not None:
        print_line(
            f"frame accuracy (the most probable senone is the aligned one): {frames.rate:.2%} of {frames.frames:,} "
            f"frames, {frames.utterances:,} utterances"
        )
    if evaluation.reliability is not None:
        print_line(str(evaluation.reliability))
    if evaluation.options.suffix:
        sizes = ", ".join(f"{part} {count:,}" for part, count in evaluation.parameters.items())
        print_line(f"parameters at inference: {sizes}")
    if evaluation.options.rescore and evaluation.short:
        beam = evaluation.options.beam
        print_line(f"{evaluation.short:,} utterances had fewer than {beam} hypotheses to rescore")
    print_line(f"written to {evaluation.folder}")
    if note := bounds["wer"].note:
        print_line(note, style="yellow")
    print_rejected(len(evaluation.rejected), str(evaluation.folder / "rejected.tsv"), "could not be used")


def print_rejected(count: int, where: str, what: str = "left out") -> None:
    """Print how many utterances were rejected, if any, and which file lists the reasons."""
    if count:
        print_line(f"{count} utterances {what}; {where} lists them with the reasons", style="yellow")


def first_process() -> bool:
    """Whether this is the process that prints and evaluates: rank 0 under `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def training_screen(steps: int) -> Iterator[TrainingProgress]:
    """Show the progress bar of a training. After SIGTERM and the last checkpoint, exit with a one-line message.

    Args:
        steps: number of updates.
    """
    from retort.common.progress import TrainingProgress
    from retort.engine.loop import Stopped

    try:
        with TrainingProgress(console if first_process() else PlainConsole(quiet=True), steps) as display:
            try:
                yield display
            except UserError:
                # torchrun sends SIGTERM to the other processes when one exits: the error is printed first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise
    except Stopped as stopped:
        print_error(str(stopped))
        sys.exit(TERMINATED)
