"""`retort export`: a trained model in the format of another engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.verbs.console import print_line


class Engine(StrEnum):
    """What opens an exported model."""

    transformers = "transformers"
    ctranslate2 = "ctranslate2"


def export(
    experiment: Annotated[Path, typer.Argument(metavar="EXP", help="Experiment or release.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the exported model.")],
    engine: Annotated[
        Engine, typer.Option("--for", help="transformers, or ctranslate2 (for faster-whisper).")
    ],
    base: Annotated[
        str,
        typer.Option(
            help="Whisper model that the training started from; by default that of the experiment's recipe."
        ),
    ] = "",
    half: Annotated[bool, typer.Option("--half", help="Weights in float16 instead of float32.")] = False,
) -> None:
    """Write a fine-tuned Whisper (student.kind: whisper) for another engine."""
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
            "this engine pads audio to 30 s, the model was trained without (features.pad_seconds): compare error rates",
            style="yellow",
        )
