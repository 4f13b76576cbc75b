"""`retort tune` and `retort gap`: weights of the search, and the gain of language models at inference."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.decoding.options import DecodingOptions, make_options, option_of
from retort.verbs.console import EXPERIMENTS, check_places, console, local_path, print_line
from retort.verbs.decoding import GRAPHS, Cuts, Given, Jobs, ModelFolder, Threads, with_decoding_options

if TYPE_CHECKING:
    from retort.tuning.scalar import TunedScalar


TUNED = tuple(each.name for each in fields(DecodingOptions) if option_of(each).tuned)
"""Options whose values `tune` chooses."""
BEAM = 10
"""Beam width for tuning."""


@with_decoding_options(without=(*TUNED, "nbest"), tuned=False)
def tune(
    experiment: ModelFolder,
    cuts: Cuts,
    given: Given,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Error rate to minimise, cer or wer; by default wer for languages that write spaces between words."
        ),
    ] = None,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Tune the no-speech threshold on CUTS and on synthetic noise, and store it with the model.",
        ),
    ] = False,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Fit the temperature and the bias of word confidences on CUTS, and store them with the model.",
        ),
    ] = False,
    threads: Threads = 1,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="Output folder; by default that of retort evaluate."),
    ] = None,
) -> None:
    """Tune decoding weights on validation data.

    With --lm or --rescore: the weights of the language models. With --graph: the acoustic scale. With --noise: the
    no-speech threshold. With --confidence: the calibration of word confidences. Otherwise: the scale of the language
    part of a factored decoder, or the length weight. The beam width is 10 unless --beam is given.

    CUTS must not be the data on which error rates are reported. The result, tuning/.../tuned.json in the output
    folder, is the argument of `retort evaluate --tuned`. Every decoding is stored in the folder tuning, so an
    interrupted command continues when it is run again.
    """
    if measure not in (None, "cer", "wer"):
        raise UserError(f"--measure is '{measure}'", remedy="Choose one of cer, wer")
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.decoding.recogniser import load
    from retort.evaluation.scalar_search import LANGUAGE, LENGTH, SCALE
    from retort.graph.pool import DecoderPool
    from retort.nn.factored import FactoredDecoder
    from retort.report.experiment import results_folder
    from retort.tuning.lm_weights import tune as run_tuning
    from retort.tuning.scalar import tune_scalar

    if noise or confidence:
        if given or measure or out or noise == confidence:
            what = "--noise" if noise else "--confidence"
            raise UserError(f"{what} excludes the other options", remedy="Remove the other options")
        torch.set_num_threads(threads)
        (_tune_noise if noise else _tune_confidence)(experiment, cuts)
        return
    graph, lm, rescore = (given.get(name) for name in ("graph", "lm", "rescore"))
    if graph and "beam" in given:
        raise UserError("--beam has no effect on the acoustic scale of a graph", remedy="Remove --beam")
    weights = {f"{name}_weight": 0.0 for name in ("lm", "rescore") if given.get(name)}
    options = make_options({"beam": 1 if graph else BEAM, **given, **weights})
    torch.set_num_threads(threads)
    folder = out or results_folder(experiment, EXPERIMENTS)
    if graph or not (lm or rescore):
        with stage_progress(console) as progress, DecoderPool(jobs or 0, GRAPHS, progress) as pool:
            recogniser = load(experiment).use_pool(pool)
            factored = isinstance(getattr(recogniser.student, "decoder", None), FactoredDecoder)
            number = SCALE if graph else LANGUAGE if factored else LENGTH
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
    print_line(f"without a language model {found.alone:.2%}, with the best weights {found.best.rate:.2%}")
    for line in found.warnings:
        print_line(line, style="yellow")
    print_line(f"written to {found.file}; tuned on {cuts}, so report error rates on other data")


def _tune_noise(experiment: Path, cuts: str) -> None:
    """Tune the no-speech threshold, and store it in the model's folder."""
    from retort.common.progress import stage_progress
    from retort.corpora.open_cuts import find_data, open_cuts
    from retort.decoding.recogniser import load, store_calibration
    from retort.evaluation.noise import calibrate

    with stage_progress(console) as progress:
        found = calibrate(load(experiment), open_cuts(find_data(cuts)).cuts, progress)
    path = store_calibration(experiment, no_speech=found.no_speech)
    print_line(f"no-speech threshold {found.no_speech.threshold:.3f}")
    print_line(
        f"on the segments used for tuning: false alarms {found.false_alarms:.2%}, missed noise {found.missed:.2%}"
    )
    print_line(f"written to {path}; evaluate it on other data with retort evaluate --noise")


def _tune_confidence(experiment: Path, cuts: str) -> None:
    """Fit the calibration of word confidences, and store it in the model's folder."""
    from retort.common.progress import stage_progress
    from retort.decoding.recogniser import load, store_calibration
    from retort.evaluation.reliability import calibrate_confidence

    with stage_progress(console) as progress:
        found = calibrate_confidence(load(experiment), cuts, lambda done, total: progress("decoding", done, total))
    path = store_calibration(experiment, confidence=found.calibration)
    print_line(f"temperature {found.calibration.temperature:.3f}, bias {found.calibration.bias:+.3f}")
    print_line(f"before: {found.before}")
    print_line(f"after: {found.after}")
    print_line(f"written to {path}; evaluate it on other data with retort evaluate")


def _show(found: TunedScalar, cuts: str) -> None:
    name, best = found.scalar.name, found.tried.best
    table = Table(name, found.measure.upper())
    for value, rate in sorted(found.tried.rates.items()):
        table.add_row(f"{value:g}", f"{rate:.2%}", style="bold" if value == best else None)
    console.print(table)
    rates = f"{found.scalar.baseline} {found.alone:.2%}, with the best {name} {found.tried.rates[best]:.2%}"
    print_line(rates)
    if found.tried.at_the_edge:
        print_line(f"the best {name}, {best:g}, is at the edge of the range that was tried", style="yellow")
    print_line(f"written to {found.file}; tuned on {cuts}, so report error rates on other data")


def gap(
    cuts: Cuts,
    student: Annotated[
        list[Path],
        typer.Option(
            parser=local_path,
            metavar="EXP",
            help="Student trained without distillation; may be given several times, once per seed.",
        ),
    ],
    distilled: Annotated[
        list[Path],
        typer.Option(
            parser=local_path,
            metavar="EXP",
            help="The same student trained with distillation; given as often as --student.",
        ),
    ],
) -> None:
    """Share of the LM's gain that distillation gives.

    Computes which share of the gain of language models at inference (shallow fusion, rescoring) a distilled student
    reaches without them. Reads the scores written by `retort evaluate`: of the students without and with --lm or
    --rescore, and of the distilled students without (optionally also with) them.
    """
    from retort.report.document import to_screen
    from retort.report.experiment import results_folder
    from retort.tuning.lm_gap import lm_gap, rates_table, shares_table

    students, twins = ([results_folder(each, EXPERIMENTS) for each in side] for side in (student, distilled))
    found = lm_gap(students, twins, cuts)
    console.print(to_screen(rates_table(found), cuts))
    console.print(to_screen(shares_table(found), "paired bootstrap over speakers"))
    for line in found.notes:
        print_line(line, style="yellow")
