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
            help="Train CIF with and without distillation from random weights on an hour of synthetic speech instead.",
        ),
    ] = False,
) -> None:
    """Transcribe real speech with models/english, then fine-tune it with and without distillation; offline.

    The fine-tuning data are a few minutes of synthetic speech. Run it from the root of the repository.
    """
    tune_environment()
    import torch

    from retort.verbs.demo_run import FINE_TUNING, FROM_SCRATCH, run_demo

    torch.set_num_threads(1)
    check_places(EXPERIMENTS)
    run_demo(console, EXPERIMENTS, tour=FROM_SCRATCH if from_scratch else FINE_TUNING)
