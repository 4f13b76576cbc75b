"""`retort teach`: the outputs of the teachers for the training text, stored on disk."""

from __future__ import annotations

import os

from retort.common.console import PlainConsole
from retort.common.environment import tune_environment
from retort.verbs.console import EXPERIMENTS, Overrides, RecipeName, check_places, console


def teach(
    recipe: RecipeName,
    overrides: Overrides = None,
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

    screen = console if os.environ.get("RANK", "0") == "0" else PlainConsole(quiet=True)
    with stage_progress(screen) as progress:
        done = run_teaching(
            loaded,
            EXPERIMENTS,
            progress,
            lambda name, folder, estimate: screen.print(f"{name}: {estimate} in {folder}"),
            lambda _, values: screen.print(values["note"]) if "note" in values else None,
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
