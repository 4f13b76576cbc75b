"""`retort report` and `retort compare`: reports of experiments, and significance tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from retort.common.environment import tune_environment
from retort.verbs.console import EXPERIMENTS, check_places, console, local_path, print_line


def report(
    experiments: Annotated[
        list[Path],
        typer.Argument(
            parser=local_path,
            metavar="EXP",
            help="Experiments or releases; the first one is the baseline that the others are compared with.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Output folder; by default the first experiment, or exp/models/NAME for a release.",
        ),
    ] = None,
) -> None:
    """Write an HTML and a Markdown report.

    report.html and report.md contain scores, training curves, CIF weights and fires, output lengths, and the
    utterances with the most errors.
    """
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.report.report import write_report

    torch.set_num_threads(1)
    check_places(out)
    with stage_progress(console) as progress:
        written = write_report(experiments, out, progress, EXPERIMENTS)
    for line in written.missing:
        print_line(line, style="yellow")
    print_line(f"written to {written.html} and {written.markdown}")


def compare(
    first: Annotated[
        Path, typer.Argument(parser=local_path, metavar="SCORE", help="score.json of the first system (baseline).")
    ],
    second: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="SCORE", help="score.json of the second system, on the same test set."
        ),
    ],
) -> None:
    """Compare two systems by paired bootstrap.

    Speakers are resampled. Prints the difference in CER and WER, its 95 % confidence interval, and the p-value.
    """
    from retort.evaluation import compare as compare_scores
    from retort.evaluation import read_score

    scores = read_score(first), read_score(second)
    table = Table("", "first", "second", "difference", "95 % interval", "p", "detectable")
    for measure in ("cer", "wer"):
        row = compare_scores(*scores, measure=measure)
        rates = f"{row.first:.2%}", f"{row.second:.2%}", f"{row.difference:+.2%}"
        found = f"{row.low:+.2%} to {row.high:+.2%}", f"{row.p:.4f}", f"{row.detectable:.2%}"
        table.add_row(measure.upper(), *rates, *found)
    console.print(table)
    print_line(f"{row.utterances} utterances, {row.speakers} speakers; a negative difference: the second is better")
    print_line("detectable: a true difference of this size would be significant (p < 0.05) with a power of 80 %")
    if row.note:
        print_line(row.note, style="yellow")
