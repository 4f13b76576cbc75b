"""`retort sweep`: many runs as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.config.ranges import THREADS
from retort.verbs.console import EXPERIMENTS, Overrides, check_places, console, local_path, tell


def sweep(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a packaged sweep, or a YAML file.")],
    overrides: Overrides = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=THREADS,
            help="Runs at once; by default one a GPU, or as many as the cores have threads for.",
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Hand every run to Slurm (pip install 'retort-asr[slurm]').")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="JSON list to which every run adds its scores; by default results/NAME.json.",
        ),
    ] = None,
) -> None:
    """Train and score systems with several seeds into exp/NAME; one table with intervals and p-values.

    A run that fails leaves the others alone. The same command goes on after a stop; what is done costs nothing.
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
        tell(f"{table} has the runs that are done")
        raise
    sweep_results.show(console)
    tell(f"written to {table}, the single runs to {to}")
    if sweep_results.failed:
        raise UserError(
            f"these runs failed: {', '.join(sweep_results.failed)}",
            where=table,
            remedy="The same command tries them again",
        )
