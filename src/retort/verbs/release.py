"""`retort release`: a model to be handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.verbs.console import EXPERIMENTS, check_places, console, local_path, print_evaluation, print_line


def release(
    experiment: Annotated[
        Path, typer.Argument(parser=local_path, metavar="EXP", help="Finished experiment.")
    ],
    out: Annotated[
        Path,
        typer.Argument(parser=local_path, metavar="OUT", help="Folder of the release, such as models/NAME."),
    ],
    licence: Annotated[str, typer.Option(help="Of the weights: an identifier such as Apache-2.0, or words.")],
    language: Annotated[str, typer.Option(help="That it hears: ISO 639 code, such as en.")],
    data_note: Annotated[
        list[str] | None, typer.Option(help="Line for the card on the data; may be given several times.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CUTS", help="Scored beside the recipe's data.test; may be given several times."
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="How the weights are stored: float16, int8 (half the size again), or float32."),
    ] = "float16",
) -> None:
    """Write a trained model as a small folder: weights, tokenizer, recipe, model card.

    The card has the errors of the released weights, as `retort evaluate OUT CUTS` finds them.
    """
    tune_environment()
    import torch

    from retort.common.errors import UserError
    from retort.common.progress import stage_progress
    from retort.common.weights import STORED
    from retort.release.card import Terms
    from retort.release.release import SMALL, release

    if weights not in STORED:
        raise UserError(f"--weights is {weights}", remedy=f"Choose one of {', '.join(STORED)}")
    terms = Terms(licence, language, data_note or [])
    torch.set_num_threads(1)
    check_places(out)
    with stage_progress(console) as progress:
        released = release(experiment, out, terms, test or [], EXPERIMENTS, progress, weights)
    for each in released.evaluations:
        print_evaluation(each.split, each)
    print_line(f"{released.folder}: {released.size / 1e6:.1f} MB")
    if released.size > SMALL:
        print_line(f"more than {SMALL / 1e6:.0f} MB: large for a repository", style="yellow")
    if released.absolute:
        print_line(f"its recipe.json names absolute paths: {', '.join(released.absolute)}", style="yellow")
