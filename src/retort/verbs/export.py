"""`retort export`: conversion of a trained model to the format of another engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.verbs.console import print_line


class Engine(StrEnum):
    """Engines that load the exported model."""

    transformers = "transformers"
    ctranslate2 = "ctranslate2"


def export(
    experiment: Annotated[Path, typer.Argument(metavar="EXP", help="Experiment or release.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    engine: Annotated[
        Engine, typer.Option("--for", help="Engine: transformers, or ctranslate2 (used by faster-whisper).")
    ],
    base: Annotated[
        str,
        typer.Option(
            help="Whisper model that was fine-tuned; by default the one named in the experiment's recipe."
        ),
    ] = "",
    half: Annotated[
        bool, typer.Option("--half", help="Store the weights in float16 instead of float32.")
    ] = False,
) -> None:
    """Export a fine-tuned Whisper model.

    The experiment's student.kind must be whisper.
    """
    tune_environment()
    from retort.decoding.recogniser import load
    from retort.export.base import base_of
    from retort.export.ctranslate2 import export_ctranslate2
    from retort.export.whisper import export_transformers

    recogniser = load(experiment)
    write = export_transformers if engine is Engine.transformers else export_ctranslate2
    written = write(recogniser, base or base_of(experiment), out, half=half)
    print_line(f"{out}: for {engine.value}, {sum(each.numel() for each in written.tensors.values()):,} parameters")
    if not written.padded:
        print_line(
            "this engine pads audio to 30 s, but the model was trained without padding (features.pad_seconds): "
            "compare the error rates",
            style="yellow",
        )
