"""`retort evaluate`: the errors of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.verbs.console import EXPERIMENTS, check_places, console, local_path, print_evaluation, print_line
from retort.verbs.decoding import (
    GRAPHS,
    AcousticScale,
    Beam,
    CtcWeight,
    Cuts,
    Graph,
    Jobs,
    LengthWeight,
    Lm,
    LmWeight,
    Mode,
    ModelFolder,
    NoSpeechThreshold,
    Rescore,
    RescoreCase,
    RescoreKind,
    RescoreWeight,
    Threads,
    TunedFile,
    Vad,
    decoding_options,
)

if TYPE_CHECKING:
    from retort.config.schema import Recipe
    from retort.training.run import Outcome


def evaluate(
    experiment: ModelFolder,
    cuts: Cuts,
    beam: Beam = None,
    nbest: Annotated[int, typer.Option(help="Readings of each utterance in hyp.jsonl, up to --beam.")] = 1,
    lm: Lm = None,
    lm_weight: LmWeight = None,
    rescore: Rescore = None,
    rescore_kind: RescoreKind = None,
    rescore_case: RescoreCase = None,
    rescore_weight: RescoreWeight = None,
    length_weight: LengthWeight = None,
    graph: Graph = None,
    acoustic_scale: AcousticScale = None,
    mode: Mode = None,
    ctc_weight: CtcWeight = None,
    vad: Vad = None,
    no_speech_threshold: NoSpeechThreshold = None,
    tuned: TunedFile = None,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Recognise synthetic noise, hum, music and bangs as well, and count those that have words (missed "
            "noise) and the utterances whose words were removed (false alarms).",
        ),
    ] = False,
    threads: Threads = 1,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Folder; by default EXP, of a model folder that stands alone exp/models/NAME.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="JSON list to which the scores are added; of experiments that were trained here.",
        ),
    ] = None,
) -> None:
    """Score a model: CER and WER with 95 % intervals over speakers, and what decoding costs.

    Writes FOLDER/evaluation/CUTS/{hyp.jsonl,score.json}. A release (models/NAME) is left as it is: its scores go
    into exp/models/NAME.
    """
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.decoding.recogniser import load
    from retort.evaluation.aligned import open_aligned
    from retort.evaluation.evaluate import evaluate as run_evaluation
    from retort.evaluation.noise import CLIPS
    from retort.evaluation.results import add_result
    from retort.graph.pool import Workplace
    from retort.report.experiment import results_folder

    options = decoding_options(
        nbest,
        tuned,
        beam=beam,
        lm=lm,
        lm_weight=lm_weight,
        rescore=rescore,
        rescore_kind=rescore_kind,
        rescore_case=rescore_case,
        rescore_weight=rescore_weight,
        length_weight=length_weight,
        graph=graph,
        acoustic_scale=acoustic_scale,
        mode=mode,
        ctc_weight=ctc_weight,
        vad=vad,
        no_speech_threshold=no_speech_threshold,
    )
    torch.set_num_threads(threads)
    folder = results_folder(experiment, EXPERIMENTS)
    run = None if results is None else _finished(experiment, folder)
    with stage_progress(console) as progress, Workplace(jobs or 0, GRAPHS, progress) as workplace:
        recogniser = load(experiment).at(workplace)
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


def _finished(experiment: Path, folder: Path) -> tuple[Recipe, Outcome]:
    """The recipe of an experiment and what its training came to."""
    import torch

    from retort.report.experiment import open_experiment
    from retort.training.run import finished

    threads = torch.get_num_threads()
    recipe = open_experiment(folder).recipe
    root = folder.resolve().parents[len(Path(recipe.name).parts) - 1]
    outcome = finished(recipe, root, "cpu")
    torch.set_num_threads(threads)  # the recipe's are for training
    if outcome is None:
        raise UserError(
            "results are kept of finished trainings, and this is none",
            where=experiment,
            remedy="Leave out --results",
        )
    return recipe, outcome
