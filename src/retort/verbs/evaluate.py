"""`retort evaluate`: error rates of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

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
    from retort.evaluation.streaming import StreamingScore
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
        str,
        typer.Option(
            metavar="N[,N...]",
            help="Recognise every utterance as a stream with chunks of this number of encoder frames, for models trained "
            "in chunks; report error rates, latency (where word ends are known) and the real-time factor. With several "
            "numbers, of which 0 stands for whole utterances, also write a table and a picture.",
        ),
    ] = "",
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
    from retort.evaluation.results import add_result, add_streaming_results
    from retort.graph.pool import DecoderPool
    from retort.report.experiment import results_folder

    if chunk and (given or noise):
        raise UserError(
            "--chunk is greedy decoding of streams", remedy="Leave out decoding options and --noise"
        )
    options = decoding_options(given)
    torch.set_num_threads(threads)
    folder = results_folder(experiment, EXPERIMENTS)
    chunks = _chunks(chunk) if chunk else []
    run = None if results is None else _finished(experiment, folder)
    if chunks:
        check_places(out or folder, results=results)
        streamed = _stream(experiment, str(cuts), chunks, out or folder)
        if results is not None and run is not None:
            add_streaming_results(results, run[0], str(cuts), streamed, **_size(run[1]))
        return
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
        add_result(results, run[0], evaluation, **_size(run[1]))


def _chunks(given: str) -> list[int]:
    """The numbers of `--chunk`."""
    parts = given.split(",")
    if not all(part.strip().isdecimal() and len(part) < 8 for part in parts) or parts == ["0"]:
        raise UserError(
            f"--chunk is {given}", remedy="Give a number of frames, or several with commas: 4,8,16,0"
        )
    return list(dict.fromkeys(int(part) for part in parts))


class _Size(TypedDict):
    """What results report of a training."""

    steps: int
    params: int
    train_seconds: float


def _size(outcome: Outcome) -> _Size:
    return {"steps": outcome.steps, "params": outcome.params, "train_seconds": outcome.seconds}


def _stream(experiment: Path, cuts: str, chunks: list[int], folder: Path) -> list[StreamingScore]:
    """Score streams with each of the chunks, and print the results."""
    from retort.common.progress import stage_progress
    from retort.decoding.options import GREEDY
    from retort.decoding.recogniser import load
    from retort.evaluation.evaluate import evaluation_name
    from retort.evaluation.scoring import Interval
    from retort.evaluation.streaming import evaluate_latencies
    from retort.report.plots import plot_latencies

    place = folder / "evaluation" / evaluation_name(cuts, GREEDY)
    with stage_progress(console) as progress:
        recogniser = load(experiment)
        found = evaluate_latencies(
            recogniser, cuts, chunks, place, lambda done, total: progress("streams", done, total)
        )
    for each in found:
        print_line(each.line())
    words = bool(recogniser.separator)
    points = {
        f"{1000 * each.chunk_seconds:.0f} ms" if each.chunk else "whole": (
            each.latency["50"],
            each.latency["95"],
            Interval(each.wer, *each.wer_interval, "speakers")
            if words
            else Interval(each.cer, *each.cer_interval, "speakers"),
        )
        for each in found
        if each.latency is not None
    }
    if len(points) > 1:
        plot_latencies(points, "WER" if words else "CER", place / "latencies.png")
        print_line(f"table and picture: {place}/latencies.md, latencies.png")
    return found


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
