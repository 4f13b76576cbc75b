"""`retort sweep`: several systems and seeds, summarised in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.config.ranges import THREADS
from retort.verbs.console import EXPERIMENTS, Overrides, check_places, console, local_path, print_line


def sweep(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a packaged sweep, or path of a YAML file.")],
    overrides: Overrides = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=THREADS,
            help="Number of parallel runs; by default one per GPU, or the number of cores divided by the threads of a "
            "run.",
        ),
    ] = None,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="Submit every run as a Slurm job (pip install 'retort-asr[slurm]')."),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="JSON file (a list) to which every run appends its scores; by default results/NAME.json.",
        ),
    ] = None,
) -> None:
    """Train and compare several systems.

    Trains and scores every system with several seeds, and writes one table with confidence intervals and p-values to
    exp/NAME. A failed run does not stop the others. An interrupted sweep continues when the same command is run again;
    finished runs are not repeated.
    """
    tune_environment()
    from retort.sweeps.config import load_sweep
    from retort.sweeps.run import run_sweep

    loaded = load_sweep(sweep, overrides or [])
    table = EXPERIMENTS / loaded.name / "table.md"
    to = results or Path("results") / f"{loaded.name}.json"
    check_places(EXPERIMENTS / loaded.name, results=to)
    try:
        sweep_results = run_sweep(console, EXPERIMENTS, loaded, to, jobs=jobs, slurm=slurm)
    except (KeyboardInterrupt, SystemExit):
        print_line(f"{table} contains the finished runs")
        raise
    sweep_results.show(console)
    print_line(f"written to {table}; scores of the runs: {to}")
    if sweep_results.failed:
        raise UserError(
            f"these runs failed: {', '.join(sweep_results.failed)}",
            where=table,
            remedy="Run the same command again to retry them",
        )
