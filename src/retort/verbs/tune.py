"""`retort tune` and `retort gap`: the weights of a search, and what language models are worth at run time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.verbs.console import EXPERIMENTS, check_places, console, local_path, tell
from retort.verbs.decoding import (
    GRAPHS,
    Cuts,
    Graph,
    Jobs,
    Lm,
    ModelFolder,
    Rescore,
    RescoreCase,
    RescoreKind,
    Threads,
    decoding_options,
)

if TYPE_CHECKING:
    from retort.tuning.scalar import TunedScalar


def tune(
    experiment: ModelFolder,
    cuts: Cuts,
    beam: Annotated[
        int | None, typer.Option(help="Hypotheses kept in the search; 10 if nothing is said.")
    ] = None,
    lm: Lm = None,
    rescore: Rescore = None,
    rescore_kind: RescoreKind = None,
    rescore_case: RescoreCase = None,
    graph: Graph = None,
    measure: Annotated[
        str | None,
        typer.Option(help="What to make small, cer or wer; by default WER where words have spaces."),
    ] = None,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Choose from which probability of no speech on a segment has no words, on CUTS and on synthetic noise, "
            "and store it with the model.",
        ),
    ] = False,
    threads: Threads = 1,
    jobs: Jobs = None,
    out: Annotated[
        Path | None, typer.Option(parser=local_path, help="Folder; by default as of retort evaluate.")
    ] = None,
) -> None:
    """Find the weights of language models, of --graph the acoustic scale, without either the weight of length.

    With --noise: the threshold between speech and noise.

    `retort evaluate --tuned FILE` takes them.
    CUTS must be other data than those whose errors are reported. Every decoding is kept in FOLDER/tuning: the
    same command goes on after a stop.
    """
    if measure not in (None, "cer", "wer"):
        raise UserError(f"--measure is '{measure}'", remedy="Choose one of cer, wer")
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.decoding.recogniser import load
    from retort.evaluation.scalar_search import LENGTH, SCALE
    from retort.graph.pool import Workplace
    from retort.report.experiment import results_folder
    from retort.tuning.lm_weights import tune as run_tuning
    from retort.tuning.scalar import tune_scalar

    if noise:
        if beam is not None or lm or rescore or graph or measure or out:
            raise UserError("--noise is calibrated by itself", remedy="Leave the other options out")
        torch.set_num_threads(threads)
        _tune_noise(experiment, cuts)
        return
    if graph and beam is not None:
        raise UserError("the acoustic scale of a graph does not depend on --beam", remedy="Leave it out")
    options = decoding_options(
        beam=1 if graph else 10 if beam is None else beam,
        lm=lm,
        lm_weight=0.0 if lm else None,
        rescore=rescore,
        rescore_kind=rescore_kind,
        rescore_case=rescore_case,
        rescore_weight=0.0 if rescore else None,
        graph=graph,
    )
    torch.set_num_threads(threads)
    folder = out or results_folder(experiment, EXPERIMENTS)
    if graph or not (lm or rescore):
        with stage_progress(console) as progress, Workplace(jobs or 0, GRAPHS, progress) as workplace:
            recogniser, number = load(experiment).at(workplace), SCALE if graph else LENGTH
            check_places(folder)
            _show(tune_scalar(number, recogniser, cuts, folder, options, progress, measure or ""), cuts)
        return
    with stage_progress(console) as progress:
        recogniser = load(experiment)
        check_places(folder)
        found = run_tuning(recogniser, cuts, folder, options, progress, measure or "")
    table = Table("lm weight", "rescore weight", "length weight", found.measure.upper())
    for each in found.tried:
        cells = (f"{each.lm_weight:g}", f"{each.rescore_weight:g}", f"{each.length_weight:g}")
        table.add_row(*cells, f"{each.rate:.2%}", style="bold" if each == found.best else None)
    console.print(table)
    tell(f"without a language model {found.alone:.2%}, with the best weights {found.best.rate:.2%}")
    for line in found.warnings:
        tell(line, style="yellow")
    tell(f"written to {found.file}; tuned on {cuts}, so report the errors on other data")


def _tune_noise(experiment: Path, cuts: str) -> None:
    """Calibrate no speech, and store it in the model's folder."""
    from retort.common.progress import stage_progress
    from retort.corpora.open_cuts import find_data, open_cuts
    from retort.decoding.recogniser import load, store_no_speech
    from retort.evaluation.noise import calibrate

    with stage_progress(console) as progress:
        found = calibrate(load(experiment), open_cuts(find_data(cuts)).cuts, progress)
    path = store_no_speech(experiment, found.no_speech)
    tell(f"no speech from a probability of {found.no_speech.threshold:.3f} on")
    tell(
        f"of the segments it was chosen on: false alarms {found.false_alarms:.2%}, missed noise {found.missed:.2%}"
    )
    tell(f"written to {path}; retort evaluate --noise on other data tells what it is worth")


def _show(found: TunedScalar, cuts: str) -> None:
    name, best = found.scalar.name, found.tried.best
    table = Table(name, found.measure.upper())
    for value, rate in sorted(found.tried.rates.items()):
        table.add_row(f"{value:g}", f"{rate:.2%}", style="bold" if value == best else None)
    console.print(table)
    without = "the graph" if found.options.graph else f"a {name}"
    tell(f"without {without} {found.alone:.2%}, with the best {name} {found.tried.rates[best]:.2%}")
    if found.tried.at_the_edge:
        tell(f"the best {name}, {best:g}, lies at the edge of what was tried", style="yellow")
    tell(f"written to {found.file}; tuned on {cuts}, so report the errors on other data")


def gap(
    cuts: Cuts,
    student: Annotated[
        list[Path],
        typer.Option(
            parser=local_path, metavar="EXP", help="Student; may be given several times, one a seed."
        ),
    ],
    distilled: Annotated[
        list[Path],
        typer.Option(
            parser=local_path, metavar="EXP", help="Its distilled twin; as many times as there are seeds."
        ),
    ],
) -> None:
    """How much of what language models give a student at run time does distillation give for nothing.

    Reads what `retort evaluate` wrote: of the student alone and with --lm or --rescore, of the twin alone or with
    them, too.
    """
    from retort.report.document import to_screen
    from retort.report.experiment import results_folder
    from retort.tuning.lm_gap import lm_gap, rates_table, shares_table

    students, twins = ([results_folder(each, EXPERIMENTS) for each in side] for side in (student, distilled))
    found = lm_gap(students, twins, cuts)
    console.print(to_screen(rates_table(found), cuts))
    console.print(to_screen(shares_table(found), "paired bootstrap over speakers"))
    for line in found.notes:
        tell(line, style="yellow")
