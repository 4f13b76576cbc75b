"""`retort evaluate`: error rates of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.verbs.console import EXPERIMENTS, check_places, console, local_path, print_evaluation, print_line
from retort.verbs.decoding import (
    GRAPHS,
    Cuts,
    Given,
    Jobs,
    ModelFolder,
    Threads,
    decoding_options,
    with_decoding_options,
)

if TYPE_CHECKING:
    from retort.config.schema import Recipe
    from retort.training.run import Outcome


@with_decoding_options()
def evaluate(
    experiment: ModelFolder,
    cuts: Cuts,
    given: Given,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Also decode synthetic noise, hum, music and bangs; report the share of them with words (missed "
            "noise) and of utterances whose words were removed (false alarms).",
        ),
    ] = False,
    chunk: Annotated[
        int,
        typer.Option(
            min=0,
            help="Recognise every utterance as a stream with chunks of this number of encoder frames, for models trained "
            "in chunks; report error rates, latency (where word ends are known) and the real-time factor. 0: whole "
            "utterances.",
        ),
    ] = 0,
    threads: Threads = 1,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Output folder; by default EXP, and exp/models/NAME for a release or a single model folder.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="JSON file (a list) to which the scores are appended; requires a finished experiment.",
        ),
    ] = None,
) -> None:
    """Decode a test set; report CER and WER.

    Reports 95 % bootstrap confidence intervals over speakers, and the real-time factor. Writes hyp.jsonl and
    score.json to evaluation/CUTS in the output folder, which is EXP, or exp/models/NAME for a release (models/NAME),
    which is not modified.
    """
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.decoding.recogniser import load
    from retort.evaluation.aligned import open_aligned
    from retort.evaluation.evaluate import evaluate as run_evaluation
    from retort.evaluation.noise import CLIPS
    from retort.evaluation.results import add_result
    from retort.graph.pool import DecoderPool
    from retort.report.experiment import results_folder

    if chunk and (given or noise or results is not None):
        raise UserError(
            "--chunk is greedy decoding of streams", remedy="Leave out decoding options, --noise and --results"
        )
    options = decoding_options(given)
    torch.set_num_threads(threads)
    folder = results_folder(experiment, EXPERIMENTS)
    if chunk:
        _stream(experiment, str(cuts), chunk, out or folder)
        return
    run = None if results is None else _finished(experiment, folder)
    with stage_progress(console) as progress, DecoderPool(jobs or 0, GRAPHS, progress) as pool:
        recogniser = load(experiment).use_pool(pool)
        check_places(out or folder, results=results)
        aligned = open_aligned(experiment, cuts, recogniser.student)
        evaluation = run_evaluation(
            recogniser, cuts, out or folder, progress, options, alignments=aligned, noise=CLIPS * noise
        )
        notes = recogniser.opened(options).notes
    print_evaluation(cuts, evaluation)
    if evaluation.noise is not None:
        for line in evaluation.noise.lines():
            print_line(line)
    for line in notes:
        print_line(line, style="yellow")
    if results is not None and run is not None:
        recipe, outcome = run
        params, seconds = outcome.params, outcome.seconds
        add_result(results, recipe, evaluation, steps=outcome.steps, params=params, train_seconds=seconds)


def _stream(experiment: Path, cuts: str, chunk: int, folder: Path) -> None:
    """Score streams, and print the results."""
    from retort.common.progress import stage_progress
    from retort.decoding.options import GREEDY
    from retort.decoding.recogniser import load
    from retort.evaluation.evaluate import evaluation_name
    from retort.evaluation.streaming import evaluate_streaming

    place = folder / "evaluation" / evaluation_name(cuts, GREEDY)
    with stage_progress(console) as progress:
        found = evaluate_streaming(
            load(experiment), cuts, chunk, place, lambda done, total: progress("streams", done, total)
        )
    print_line(found.line())


def _finished(experiment: Path, folder: Path) -> tuple[Recipe, Outcome]:
    """Open the recipe of a finished experiment and the outcome of its training."""
    import torch

    from retort.report.experiment import open_experiment
    from retort.training.run import finished

    threads = torch.get_num_threads()
    recipe = open_experiment(folder).recipe
    root = folder.resolve().parents[len(Path(recipe.name).parts) - 1]
    outcome = finished(recipe, root, "cpu")
    torch.set_num_threads(threads)  # `finished` set the number of threads of the recipe
    if outcome is None:
        raise UserError(
            "--results requires an experiment whose training is finished",
            where=experiment,
            remedy="Leave out --results",
        )
    return recipe, outcome
