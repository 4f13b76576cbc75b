"""`retort teach`: the outputs of the teachers for the training text, stored on disk."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from retort.common.console import PlainConsole
from retort.common.environment import tune_environment
from retort.verbs.console import EXPERIMENTS, Overrides, RecipeName, check_places, console, part_of


def teach(
    recipe: RecipeName,
    overrides: Overrides = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            max=1024,
            help="Number of processes, on the GPUs in turn. The outputs depend on it by rounding only.",
        ),
    ] = 1,
    part: Annotated[
        Any,
        typer.Option(
            parser=part_of,
            help="Compute only part I of N, for arrays of jobs that share the folder exp. Nothing has to be merged.",
        ),
    ] = "1/1",
) -> None:
    """Compute and store the teachers' outputs.

    Every teacher is run once over the training transcripts; its outputs are stored in exp/cache. An interrupted
    command continues when it is run again. Under torchrun, every process computes its share.
    """
    tune_environment()
    from retort.config.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    check_places(EXPERIMENTS)
    from retort.common.progress import stage_progress
    from retort.training.teach import teach as run_teaching
    from retort.training.teach import teach_in_processes

    screen = console if os.environ.get("RANK", "0") == "0" else PlainConsole(quiet=True)

    def report(_: int, values: dict[str, Any]) -> None:
        if "note" in values:
            screen.print(values["note"])

    with stage_progress(screen) as progress:
        if jobs > 1:
            teach_in_processes(loaded, EXPERIMENTS, part, jobs, progress, report)
        done = run_teaching(
            loaded,
            EXPERIMENTS,
            progress,
            lambda name, folder, estimate: screen.print(f"{name}: {estimate} in {folder}"),
            report,
            (part[0] - 1, part[1], 0) if part[1] > 1 else None,
        )
    for each in done:
        store = each.store
        screen.print(
            f"{each.name}: {each.read:,} texts computed; {store.folder} contains {len(store):,} texts, "
            f"{store.bytes / 1e6:,.1f} MB",
        )
        if each.missing:
            screen.print(f"{each.missing:,} texts are left to other processes")
        if loaded.teachers[each.name].storage == "online":
            screen.print(f"set teachers.{each.name}.storage: disk to train from this store", style="yellow")
