"""The `retort` command: one function a verb; torch is imported only inside a verb."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from retort.common.console import PlainConsole, prepare_streams
from retort.common.environment import tune_environment
from retort.common.errors import UserError, print_error, print_to_stderr, system_error
from retort.common.files import check_local
from retort.common.signals import report_signals
from retort.verbs.console import (
    EXPERIMENTS,
    Overrides,
    RecipeName,
    check_places,
    console,
    finite,
    first_process,
    local_path,
    print_change,
    print_evaluation,
    say_rejected,
    tell,
    training_screen,
)
from retort.verbs.evaluate import evaluate
from retort.verbs.export import export
from retort.verbs.fetch import fetch
from retort.verbs.info import info
from retort.verbs.label import label
from retort.verbs.lm import lm
from retort.verbs.release import release
from retort.verbs.sweep import sweep
from retort.verbs.transcribe import transcribe
from retort.verbs.tune import gap, tune

app = typer.Typer(
    name="retort",
    help="Distil language models into speech recognisers; at run time none is needed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lm, name="lm")
AFTER = dict.fromkeys(("train", "lm", "demo", "sweep"), "; the same command goes on from the last checkpoint")
AFTER["teach"] = "; every whole shard is kept, and the same command goes on behind them"
AFTER["fetch"] = "; what was downloaded is kept, and the same command goes on"
AFTER["tune"] = "; every weight that is done is kept, and the same command goes on behind them"
"""What a verb that was stopped can say of going on."""


class Kind(StrEnum):
    """Of corpora."""

    aishell1 = "aishell1"
    librispeech = "librispeech"
    kaldi = "kaldi"
    table = "table"
    synthetic = "synthetic"


@report_signals(lambda: AFTER.get(next(iter(sys.argv[1:]), ""), ""))
def main() -> None:
    """Run the command line: a user's mistake is one line and exit code 2."""
    prepare_streams()
    show_warnings()
    try:
        try:
            app()
        finally:
            _flush()  # here a disk that is full can still be reported
    except UserError as error:
        print_error(str(error))
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has gone
        sys.exit(1)
    except OSError as error:
        print_error(system_error(error))
        sys.exit(2)
    except MemoryError:
        print_error("there is not enough memory. Choose smaller sizes, batches or beams")
        sys.exit(2)


def show_warnings() -> None:
    """Print what this package logs (a file that ends early) as lines of their own on stderr, each only once."""
    shown: set[str] = set()

    class Aside(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if line not in shown:
                shown.add(line)
                print_to_stderr(line)

    log = logging.getLogger("retort")
    log.addHandler(Aside(logging.WARNING))
    log.propagate = False


def _flush() -> None:
    """Write what was printed; where that fails, the rest is given up, for else it would fail again at the end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@app.command()
def prepare(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="Layout of the corpus.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder or table; for `synthetic` a file of sentences, or - for the built-in grammar.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="OUT", help="Folder for the manifests, OUT/NAME.jsonl.gz, one a split."
        ),
    ],
    held_out: Annotated[
        float,
        typer.Option(
            help="table without a split column: share of speakers for validation, and again for test."
        ),
    ] = 0.0,
    max_hours: Annotated[
        float,
        typer.Option(
            min=0.0, callback=finite, help="table, kaldi: a longer recording is left out and listed."
        ),
    ] = 24.0,
) -> None:
    """Turn a corpus into lhotse manifests."""
    from retort.common.progress import stage_progress
    from retort.corpora import PREPARERS

    check_local(source)
    check_places(out)
    options = {"held_out": held_out} if kind is Kind.table else {}
    if kind in (Kind.table, Kind.kaldi):
        options["maximum_hours"] = max_hours
    with stage_progress(console) as progress:
        if kind is Kind.synthetic:
            options["progress"] = lambda done, total: progress("synthesis", done, total)  # type: ignore[assignment]
        grammar = kind is Kind.synthetic and source == "-"
        prepared = PREPARERS[kind.value](None if grammar else Path(source), out, **options)
    for name, manifest in prepared.manifests.items():
        hours = prepared.seconds[name] / 3600
        tell(f"{manifest}: {prepared.utterances[name]:,} utterances, {hours:.2f} h")
    say_rejected(len(prepared.rejected), f"{out}/*.rejected.tsv")


@app.command()
def teach(
    recipe: RecipeName,
    overrides: Overrides = None,
) -> None:
    """Let the teachers read the training text once, into exp/cache; the same command goes on after a stop.

    Under torchrun every process reads its share.
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
            f"{each.name}: {each.read:,} texts read now; {store.folder} holds {len(store):,} in "
            f"{store.bytes / 1e6:,.1f} MB",
        )
        if each.missing:
            screen.print(f"{each.missing:,} texts are the share of other processes")
        if loaded.teachers[each.name].storage == "online":
            screen.print(f"set teachers.{each.name}.storage: disk to train from it", style="yellow")


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    results: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="JSON list to which the scores on data.test are added."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="new_output: start from a model of another vocabulary, whose output layer is dropped.",
        ),
    ] = None,
) -> None:
    """Train into exp/NAME and score on data.test; the same command goes on after a stop."""
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
    from retort.graph.pool import Workplace
    from retort.training.run import train as run_training

    with training_screen(loaded.training.steps) as display:
        outcome = run_training(loaded, EXPERIMENTS, display.stage, display.report)
    if not first_process():
        return
    if outcome.before:
        tell(f"{outcome.folder} is finished: nothing to train")
    say_rejected(len(outcome.rejected), str(outcome.folder / "rejected.tsv"))
    tell(
        f"{outcome.folder / 'model'}: {outcome.steps:,} steps, average of {outcome.averaged}",
    )
    for source in loaded.data.test:
        with stage_progress(console) as progress, Workplace(loaded.training.threads) as workplace:
            model, folder = outcome.recogniser.at(workplace), outcome.folder
            aligned = open_aligned(folder, source, model.student)
            evaluation = run_evaluation(model, source, folder, progress, reuse=True, alignments=aligned)
            started = score_start(loaded, source, folder, workplace, progress)
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


app.command()(evaluate)


@app.command()
def compare(
    first: Annotated[
        Path, typer.Argument(parser=local_path, metavar="SCORE", help="score.json of the first system.")
    ],
    second: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="SCORE", help="score.json of the second, on the same cuts."
        ),
    ],
) -> None:
    """Compare two scores: paired bootstrap over speakers."""
    from retort.evaluation import compare as compare_scores
    from retort.evaluation import read_score

    scores = read_score(first), read_score(second)
    table = Table("", "first", "second", "difference", "95 % interval", "p", "seen from")
    for measure in ("cer", "wer"):
        row = compare_scores(*scores, measure=measure)
        rates = f"{row.first:.2%}", f"{row.second:.2%}", f"{row.difference:+.2%}"
        found = f"{row.low:+.2%} to {row.high:+.2%}", f"{row.p:.4f}", f"{row.detectable:.2%}"
        table.add_row(measure.upper(), *rates, *found)
    console.print(table)
    tell(f"{row.utterances} utterances, {row.speakers} speakers; below zero the second is better")
    tell("seen from: a true difference of that size would be found (p below 0.05) four times in five")
    if row.note:
        tell(row.note, style="yellow")


app.command()(transcribe)
app.command()(tune)
app.command()(gap)


app.command()(info)
app.command()(fetch)


@app.command()
def report(
    experiments: Annotated[
        list[Path],
        typer.Argument(
            parser=local_path,
            metavar="EXP",
            help="Experiments or releases; the others are compared with the first.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="Folder; by default that of the first experiment, of a release exp/models/NAME.",
        ),
    ] = None,
) -> None:
    """Write report.html and report.md: scores, curves, fires, lengths, the worst utterances."""
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.report.report import write_report

    torch.set_num_threads(1)
    check_places(out)
    with stage_progress(console) as progress:
        written = write_report(experiments, out, progress, EXPERIMENTS)
    for line in written.missing:
        tell(line, style="yellow")
    tell(f"written to {written.html} and {written.markdown}")


app.command()(release)
app.command()(export)
app.command()(label)


@app.command()
def demo(
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Train CIF with and without distillation from random weights on an hour of synthetic speech instead.",
        ),
    ] = False,
) -> None:
    """Transcribe real speech with models/english, then fine-tune it with and without distillation; offline.

    The fine-tuning data are a few minutes of synthetic speech. Run it from the root of the repository.
    """
    tune_environment()
    import torch

    from retort.verbs.demo import FINE_TUNING, FROM_SCRATCH, run_demo

    torch.set_num_threads(1)
    check_places(EXPERIMENTS)
    run_demo(console, EXPERIMENTS, tour=FROM_SCRATCH if from_scratch else FINE_TUNING)



app.command()(sweep)


if __name__ == "__main__":
    main()
