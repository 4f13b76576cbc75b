"""`retort train`: training of a recogniser, and its error rates on the test data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.verbs.console import (
    EXPERIMENTS,
    Overrides,
    RecipeName,
    check_places,
    console,
    first_process,
    local_path,
    print_change,
    print_evaluation,
    print_line,
    print_rejected,
    training_screen,
)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    results: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="JSON file (a list) to which the scores on data.test are appended."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="new_output: allow an initial model with another vocabulary; its output layer is not used.",
        ),
    ] = None,
) -> None:
    """Train a recogniser into exp/NAME.

    The trained model is scored on data.test. An interrupted training continues from its last checkpoint when the same
    command is run again.
    """
    tune_environment()
    from retort.config.checks import check_recipe
    from retort.config.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    loaded.training.allow += allow or []
    check_recipe(loaded, "--allow")
    check_places(EXPERIMENTS / loaded.name, results=results)
    from retort.common.progress import stage_progress
    from retort.evaluation.aligned import open_aligned
    from retort.evaluation.before import score_start
    from retort.evaluation.evaluate import evaluate as run_evaluation
    from retort.evaluation.results import add_result
    from retort.graph.pool import DecoderPool
    from retort.training.run import train as run_training

    with training_screen(loaded.training.steps) as display:
        outcome = run_training(loaded, EXPERIMENTS, display.stage, display.report)
    if not first_process():
        return
    if outcome.before:
        print_line(f"{outcome.folder} is finished: nothing to train")
    print_rejected(len(outcome.rejected), str(outcome.folder / "rejected.tsv"))
    print_line(
        f"{outcome.folder / 'model'}: {outcome.steps:,} steps, average of {outcome.averaged}",
    )
    for source in loaded.data.test:
        with stage_progress(console) as progress, DecoderPool(loaded.training.threads) as pool:
            model, folder = outcome.recogniser.use_pool(pool), outcome.folder
            aligned = open_aligned(folder, source, model.student)
            evaluation = run_evaluation(model, source, folder, progress, reuse=True, alignments=aligned)
            started = score_start(loaded, source, folder, pool, progress)
        print_evaluation(source, evaluation)
        if started is not None:
            print_change(started.score, evaluation.score)
        if results is not None:
            add_result(
                results,
                loaded,
                evaluation,
                steps=outcome.steps,
                params=outcome.params,
                train_seconds=outcome.seconds,
            )
