"""`retort sweep`: trains and scores the missing runs of a sweep, several in parallel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from rich.console import Console

from retort.common.errors import UserError
from retort.common.progress import stage_progress
from retort.config.schema import Recipe
from retort.decoding.options import DecodingOptions
from retort.evaluation.scoring import percent
from retort.sweeps.config import Run, Sweep, View
from retort.sweeps.launcher import Training, run_trainings, start_here
from retort.sweeps.results import RESULTS, SweepResults
from retort.sweeps.slurm import start_on_slurm
from retort.training.prerequisites import missing_warm_start

GPUS = "CUDA_VISIBLE_DEVICES"


def run_sweep(
    console: Console, root: Path, sweep: Sweep, results: Path, *, jobs: int | None = None, slurm: bool = False
) -> SweepResults:
    """Train and score the missing runs, warm starts first; a failed run does not affect the others.

    Args:
        root: folder of the experiments, `exp` in the working directory, as for `retort train`.
        results: JSON list that the rows of every run are added to.
        jobs: number of parallel runs; by default one per GPU, or as many as the cores allow, or all on Slurm.
        slurm: submit every run to the cluster.

    Returns:
        The results; `failed` has the runs and warm starts that failed.

    Raises:
        UserError: as :func:`retort.sweeps.slurm.start_on_slurm`, or the results cannot be written.
    """
    sweep_results = SweepResults(sweep, root, results)
    with stage_progress(console) as progress:
        runs = sweep.runs
        for number, run in enumerate(runs, 1):
            sweep_results.load_run(run)
            progress("checking runs", number, len(runs))
    sweep_results.write()
    console.print(f"{sweep_results.complete} of {len(runs)} runs are done already", highlight=False)
    missing, trainings = _trainings(sweep_results)

    def ended(training: Training, error: UserError | None) -> UserError | None:
        run, view = missing.get(training.name, (None, None))
        if run and error is None and (not sweep_results.load_run(run) or view in sweep_results.missing_views(run)):
            error = UserError("the run ended without a score", where=training.name)
        if error is not None:
            sweep_results.failed[training.name] = error
        sweep_results.write()
        console.print(_summary(training, sweep_results, error), markup=False, soft_wrap=True)
        return error

    if missing:
        start = start_on_slurm(root / sweep.name / "slurm", sweep.slurm) if slurm else start_here
        places = (
            [{}] * (jobs or len(trainings)) if slurm else _places([run for run, _ in missing.values()], jobs)
        )
        run_trainings(console, root, trainings, places, start=start, ended=ended)
    return sweep_results


def _summary(training: Training, sweep_results: SweepResults, error: UserError | None) -> str:
    if error is not None:
        return str(error)
    found = sweep_results.done.get(training.name)
    rates = (
        "  ".join(f"{each.split}: CER {percent(each.score.cer)}" for each in found.evaluations)
        if found
        else ""
    )
    return f"{training.name} is done  {rates}".rstrip()


Missing = dict[str, tuple[Run, View | None]]
"""By name of the training or scoring: the run, and for a scoring its view."""


def _trainings(sweep_results: SweepResults) -> tuple[Missing, list[Training]]:
    """The missing trainings and scorings in order: warm starts, the runs that need them, the scorings of runs."""
    first: dict[str, Training] = {}
    last: list[Training] = []
    missing: Missing = {}
    for run in sweep_results.sweep.runs:
        name = run.recipe.name
        before: tuple[str, ...] = ()
        if name not in sweep_results.done:
            after = _warm_starts(run.recipe, sweep_results.root, first)
            arguments = ("train", *run.arguments, "--results", str(sweep_results.root / name / RESULTS))
            last.append(Training(name, run.recipe.training.steps, arguments, after))
            missing[name], before = (run, None), (name,)
        for view in sweep_results.missing_views(run):
            scoring = sweep_results.sweep.scoring(run, view)
            threads = str(run.recipe.training.threads)  # the cores are shared by all parallel runs
            options = (*_flags(view.options), "--jobs", threads)
            arguments = ("evaluate", str(sweep_results.root / name), view.source, *options)
            last.append(Training(scoring, 0, arguments, before))
            missing[scoring] = run, view
    return missing, [*first.values(), *last]


def _flags(options: DecodingOptions) -> Iterator[str]:
    """Flags of `retort evaluate` for the options that differ from their defaults."""
    for each in fields(options):
        if (value := getattr(options, each.name)) != each.default:
            yield from (f"--{each.name.replace('_', '-')}", str(value))


def _warm_starts(recipe: Recipe, root: Path, found: dict[str, Training]) -> tuple[str, ...]:
    """Names of the trainings that this recipe depends on; they are added to `found`."""
    needed = missing_warm_start(recipe, root)
    if needed is None:
        return ()
    before = _warm_starts(needed, root, found)
    arguments = ("train", recipe.training.warm_start)
    found[needed.name] = Training(needed.name, needed.training.steps, arguments, before)
    return (*before, needed.name)


def _places(runs: Sequence[Run], jobs: int | None) -> list[dict[str, str]]:
    """Environment variables of each parallel run: its GPU, if there are any."""
    on_gpu = any(run.recipe.training.device != "cpu" for run in runs)
    count = torch.cuda.device_count() if on_gpu else 0
    if not count:
        threads = max(run.recipe.training.threads for run in runs)
        return [{}] * (jobs or max(1, len(os.sched_getaffinity(0)) // threads))
    own = os.environ.get(GPUS)
    gpus = own.split(",")[:count] if own else [str(number) for number in range(count)]
    return [{GPUS: gpus[number % count]} for number in range(jobs or count)]
