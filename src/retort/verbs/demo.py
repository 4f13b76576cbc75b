"""`retort demo`: the command; `demo_run.py` does the work."""

from __future__ import annotations

from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.verbs.console import EXPERIMENTS, check_places, console


def demo(
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Train from random weights on an hour of synthetic speech instead of fine-tuning models/english.",
        ),
    ] = False,
) -> None:
    """Fine-tune a model with and without a teacher.

    Transcribes a recording with models/english, fine-tunes this model on a few minutes of synthetic speech with and
    without distillation, prints the error rates of all three and writes exp/demo/report.html. Needs no network. Run it
    in the root of the repository.
    """
    tune_environment()
    import torch

    from retort.verbs.demo_run import FINE_TUNING, FROM_SCRATCH, run_demo

    torch.set_num_threads(1)
    check_places(EXPERIMENTS)
    run_demo(console, EXPERIMENTS, tour=FROM_SCRATCH if from_scratch else FINE_TUNING)
