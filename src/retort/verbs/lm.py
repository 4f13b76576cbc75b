"""`retort lm`: language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.config.ranges import MILLION
from retort.verbs.console import (
    EXPERIMENTS,
    Overrides,
    RecipeName,
    check_places,
    console,
    first_process,
    tell,
    training_screen,
)
from retort.verbs.decoding import Threads

if TYPE_CHECKING:
    from retort.lm.scoring import LmScore

lm = typer.Typer(help="Train language models, and ask what they know of a text.", no_args_is_help=True)


@lm.command()
def train(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Train a language model into exp/NAME; the same command goes on after a stop.

    Of a masked one exp/NAME/model is a Hugging Face folder: a teacher's `model`. Causal ones and n-grams are over
    the pieces of a student, or their own. With `units` all are over the senones or phones that sentences are said in.
    """
    tune_environment()
    from retort.lm.config import load_lm_recipe

    loaded = load_lm_recipe(recipe, overrides or [])
    check_places(EXPERIMENTS / loaded.name)
    from retort.lm_training.run import train_lm

    with training_screen(loaded.training.steps) as display:
        outcome = train_lm(loaded, EXPERIMENTS, display.stage, display.report)
    if first_process():
        tell(f"{outcome.folder / 'model'}: {outcome.summary}")
        _print_scores({"held out": outcome.score})


@lm.command()
def score(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Experiment or model folder of any language model, or Hugging Face name of a masked one.",
        ),
    ],
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Text file (.gz, .xz), Kaldi folder or manifest.")
    ],
    case: Annotated[
        str, typer.Option(help="What a masked model reads: upper, lower or keep; others know it.")
    ] = "keep",
    longest: Annotated[
        int,
        typer.Option(
            min=3,
            max=MILLION,
            help="Pieces of a sentence for a masked model; the end of a longer one is cut off.",
        ),
    ] = 128,
    threads: Threads = 1,
) -> None:
    """Perplexity a piece and a word.

    Of a masked model pseudo-perplexity, and the share of first guesses that are right, each piece (or word)
    hidden in turn.
    """
    if case not in ("upper", "lower", "keep"):
        raise UserError(f"--case is '{case}'", remedy="Choose one of upper, lower, keep")
    tune_environment()
    import torch

    from retort.common.progress import stage_progress
    from retort.corpora.sentences import Sentences

    torch.set_num_threads(threads)
    opened = _scorer(model, case, longest)
    scores = {}
    with stage_progress(console) as progress:
        for source in texts:
            scores[source] = opened(
                list(Sentences(source)),
                lambda done, total, source=source: progress(source, done, total),  # type: ignore[misc]
            )
    _print_scores(scores)


def _scorer(
    model: str, case: str, longest: int
) -> Callable[[list[str], Callable[[int, int], None]], LmScore]:
    """Scores sentences as they stand in a text, with a model of whatever kind."""
    from retort.lm.factory import is_causal_lm, open_causal_lm

    if is_causal_lm(model):
        from retort.lm.scoring import score_text

        causal = open_causal_lm(model)
        return lambda sentences, progress: score_text(
            causal, [causal.normalise(each) for each in sentences], progress
        )
    from retort.lm.masked_scoring import open_guesser, score_sentences
    from retort.text.normalise import recase

    masked, tokenizer, limit = open_guesser(model)
    return lambda sentences, progress: score_sentences(
        masked, tokenizer, [recase(each, case) for each in sentences], min(longest, limit), progress
    )


def _print_scores(scores: dict[str, LmScore]) -> None:
    table = Table("", *scores)
    for name, form in (
        *(("sentences", "{:,}"), ("words", "{:,}"), ("pieces", "{:,}"), ("unknown", "{:.2%}")),
        *(("perplexity", "{:,.2f}"), ("word_perplexity", "{:,.1f}")),
        *(("top1", "{:.2%}"), ("word_top1", "{:.2%}")),
    ):
        values = [getattr(each, name) for each in scores.values()]
        if name == "unknown":
            values = [value / each.pieces for value, each in zip(values, scores.values())]
        if None not in values:
            table.add_row(name.replace("_", " "), *(form.format(value) for value in values))
    console.print(table)
