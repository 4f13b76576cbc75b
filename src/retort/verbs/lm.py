"""`retort lm`: language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retort.allocator import tune_allocator
from retort.errors import UserError
from retort.verbs.screen import (
    EXPERIMENTS,
    Overrides,
    RecipeName,
    console,
    first_process,
    tell,
    training_screen,
)

if TYPE_CHECKING:
    from retort.lm.guessing import LmScore

lm = typer.Typer(help="Train language models, and ask what they know of a text.", no_args_is_help=True)


@lm.command()
def train(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Train a masked language model into exp/NAME; the same command goes on after a stop.

    exp/NAME/model is a Hugging Face folder: a teacher's `model`.
    """
    tune_allocator()
    from retort.lm.config import load_lm_recipe
    from retort.training.lm import train_lm

    loaded = load_lm_recipe(recipe, overrides or [])
    with training_screen(loaded.training.steps) as display:
        outcome = train_lm(loaded, EXPERIMENTS, display.stage, display.report)
    if first_process():
        tell(f"{outcome.folder / 'model'}: {outcome.steps:,} steps, average of {outcome.averaged}")
        _print_scores({"held out": outcome.score})


@lm.command()
def score(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face name or folder of a masked language model.")
    ],
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Text file (.gz, .xz), Kaldi folder or manifest.")
    ],
    case: Annotated[str, typer.Option(help="What the model reads: upper, lower or keep.")] = "keep",
    longest: Annotated[
        int, typer.Option(help="Pieces of a sentence; the end of a longer one is cut off.")
    ] = 128,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Pseudo-perplexity and share of first guesses that are right, each piece (or word) hidden in turn."""
    if case not in ("upper", "lower", "keep"):
        raise UserError(f"--case is '{case}'", remedy="Choose one of upper, lower, keep")
    tune_allocator()
    import torch

    from retort.corpora.sentences import Sentences
    from retort.lm.guessing import open_guesser, score_sentences
    from retort.progress import stage_progress
    from retort.text.normalise import recase

    torch.set_num_threads(threads)
    guesser, tokenizer, limit = open_guesser(model)
    scores = {}
    with stage_progress(console) as progress:
        for source in texts:
            sentences = [recase(sentence, case) for sentence in Sentences(source)]
            scores[source] = score_sentences(
                guesser,
                tokenizer,
                sentences,
                min(longest, limit),
                lambda done, total, source=source: progress(source, done, total),  # type: ignore[misc]
            )
    _print_scores(scores)


def _print_scores(scores: dict[str, LmScore]) -> None:
    table = Table("", *scores)
    shown = (
        *(("sentences", "{:,}"), ("words", "{:,}"), ("pieces", "{:,}"), ("unknown", "{:,}")),
        *(("perplexity", "{:,.2f}"), ("word_perplexity", "{:,.1f}")),
        *(("top1", "{:.2%}"), ("word_top1", "{:.2%}")),
    )
    for name, form in shown:
        table.add_row(name.replace("_", " "), *(form.format(getattr(each, name)) for each in scores.values()))
    console.print(table)
