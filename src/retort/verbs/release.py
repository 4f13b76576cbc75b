"""`retort release`: a small folder of a trained model for distribution."""

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
        typer.Argument(parser=local_path, metavar="OUT", help="Output folder, such as models/NAME."),
    ],
    licence: Annotated[
        str, typer.Option(help="Licence of the weights: an SPDX identifier such as Apache-2.0, or free text.")
    ],
    language: Annotated[str, typer.Option(help="Language of the model (ISO 639 code), such as en.")],
    data_note: Annotated[
        list[str] | None,
        typer.Option(help="A line on the training data for the model card; may be given several times."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CUTS", help="Test set to score in addition to data.test; may be given several times."
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="Format of the stored weights: float32, float16, int8 or int4."),
    ] = "float16",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            parser=local_path,
            metavar="EXP",
            help="Experiment or release that the model card compares the model with, such as the same system trained "
            "without distillation; may be given several times.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="Upload the release to this model on the Hugging Face hub, as one commit.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: a new model on the hub is private.")
    ] = False,
) -> None:
    """Write a small folder for distribution.

    The folder contains weights, tokenizer, recipe and a model card. The card lists the error rates of the stored
    (quantised) weights, as `retort evaluate OUT CUTS` computes them.
    """
    tune_environment()
    import torch

    from retort.common.errors import UserError
    from retort.common.progress import stage_progress
    from retort.common.weights import STORED
    from retort.release.card import Terms
    from retort.release.hub import check_name
    from retort.release.hub import push as push_to_hub
    from retort.release.release import SMALL, release

    if weights not in STORED:
        raise UserError(f"--weights is {weights}", remedy=f"Choose one of {', '.join(STORED)}")
    if push is not None:
        check_name(push)
    terms = Terms(licence, language, data_note or [])
    torch.set_num_threads(1)
    check_places(out)
    with stage_progress(console) as progress:
        released = release(experiment, out, terms, test or [], EXPERIMENTS, progress, weights, compare or [])
    for each in released.evaluations:
        print_evaluation(each.split, each)
    print_line(f"{released.folder}: {released.size / 1e6:.1f} MB")
    if released.size > SMALL:
        print_line(f"more than {SMALL / 1e6:.0f} MB: large for a Git repository", style="yellow")
    if released.absolute:
        print_line(f"recipe.json contains absolute paths: {', '.join(released.absolute)}", style="yellow")
    if push is not None:
        print_line(f"pushed as {push_to_hub(released.folder, push, private=private)}")
