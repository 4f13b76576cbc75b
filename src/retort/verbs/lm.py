"""`retort lm`: training and perplexity of language models."""

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
    print_line,
    training_screen,
)
from retort.verbs.decoding import Threads

if TYPE_CHECKING:
    from retort.lm.scoring import LmScore

lm = typer.Typer(help="Train language models; compute perplexity.", no_args_is_help=True)


@lm.command()
def train(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Train a language model into exp/NAME.

    A masked language model is saved as a Hugging Face folder, exp/NAME/model, which a teacher can name as its `model`.
    Causal and n-gram models use the tokenizer of a student, or one of their own. With `units` the models are over the
    senones or phones of the sentences. An interrupted training continues when the same command is run again.
    """
    tune_environment()
    from retort.lm.config import load_lm_recipe

    loaded = load_lm_recipe(recipe, overrides or [])
    check_places(EXPERIMENTS / loaded.name)
    from retort.lm_training.run import train_lm

    with training_screen(loaded.training.steps) as display:
        outcome = train_lm(loaded, EXPERIMENTS, display.stage, display.report)
    if first_process():
        print_line(f"{outcome.folder / 'model'}: {outcome.summary}")
        _print_scores({"held out": outcome.score})


@lm.command()
def score(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Experiment or model folder of a language model, or Hugging Face name of a masked language model.",
        ),
    ],
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT", help="Text files (also .gz, .xz), Kaldi folders or lhotse manifests."),
    ],
    case: Annotated[
        str,
        typer.Option(help="Case of the text given to a masked model: upper, lower or keep; stored with other models."),
    ] = "keep",
    longest: Annotated[
        int,
        typer.Option(
            min=3,
            max=MILLION,
            help="Maximum number of tokens of a sentence for a masked model; longer sentences are truncated.",
        ),
    ] = 128,
    threads: Threads = 1,
) -> None:
    """Compute perplexity per token and per word.

    For masked models this is the pseudo-perplexity (tokens are masked one at a time), together with the accuracy of
    the most probable token, and of the most probable word.
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
    """Open a language model of any kind as a function that scores sentences."""
    from retort.lm.factory import is_causal_lm, open_causal_lm

    if is_causal_lm(model):
        from retort.lm.scoring import score_text

        causal = open_causal_lm(model)
        return lambda sentences, progress: score_text(
            causal, [causal.normalise(each) for each in sentences], progress
        )
    from retort.lm.masked_scoring import open_masked_scorer, score_sentences
    from retort.text.normalise import recase

    masked, tokenizer, limit = open_masked_scorer(model)
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
