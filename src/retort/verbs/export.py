"""`retort export`: conversion of a trained model to the format of another engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.common.errors import UserError
from retort.verbs.console import console, print_line


class Engine(StrEnum):
    """Engines that load the exported model."""

    onnx = "onnx"
    sherpa_onnx = "sherpa-onnx"
    transformers = "transformers"
    ctranslate2 = "ctranslate2"


def export(
    experiment: Annotated[Path, typer.Argument(metavar="EXP", help="Experiment or release.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    engine: Annotated[
        Engine,
        typer.Option(
            "--for",
            help="Engine: onnx (CIF models, run by retort without torch), sherpa-onnx (models with a CTC head, transducers "
            "and parallel CIF models), transformers (Whisper models, and CTC models on wav2vec 2.0 and related encoders), "
            "or ctranslate2 (Whisper models, used by faster-whisper).",
        ),
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx, sherpa-onnx: store the weights of matrix products in 8 bits.")
    ] = False,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="sherpa-onnx: frames of the encoder's output in a chunk of a model that was trained in chunks, which then "
            "recognises audio while it arrives; by default the smallest of the training. 0: whole utterances.",
        ),
    ] = None,
    test: Annotated[
        str,
        typer.Option(
            metavar="CUTS",
            help="onnx, sherpa-onnx: recognise this test set with torch and with the engine, and compare the errors.",
        ),
    ] = "",
    accept: Annotated[
        bool, typer.Option("--accept", help="Accept an export whose errors differ from those of torch.")
    ] = False,
    base: Annotated[
        str,
        typer.Option(
            help="transformers, ctranslate2: Whisper model that was fine-tuned; by default the one named in the "
            "experiment's recipe."
        ),
    ] = "",
    half: Annotated[
        bool,
        typer.Option("--half", help="transformers, ctranslate2: store the weights in float16 instead of float32."),
    ] = False,
) -> None:
    """Export a model to another engine.

    With --test the export is scored by the engine that will run it; error rates that differ from those of torch by more
    than 0.1 points, or an 8-bit model with 2 % more errors, are an error without --accept.
    """
    tune_environment()
    onnx = engine in (Engine.onnx, Engine.sherpa_onnx)
    if chunk is not None and engine is not Engine.sherpa_onnx:
        raise UserError(f"--chunk is not supported for {engine.value}", remedy="Leave --chunk out")
    for flag, given in (("--int8", int8), ("--test", bool(test))):
        if given and not onnx:
            raise UserError(f"{flag} is not supported for {engine.value}", remedy=f"Leave {flag} out")
    for flag, given in (("--base", bool(base)), ("--half", half)):
        if given and onnx:
            raise UserError(f"{flag} is not supported for {engine.value}", remedy=f"Leave {flag} out")
    if onnx:
        _export_onnx(experiment, out, engine, int8, chunk, test, accept)
    else:
        _export_weights(experiment, out, engine, base, half)


def _export_onnx(
    experiment: Path, out: Path, engine: Engine, int8: bool, chunk: int | None, test: str, accept: bool
) -> None:
    import torch

    from retort.common.progress import stage_progress
    from retort.corpora.open_cuts import open_cuts
    from retort.decoding.recogniser import load
    from retort.export.write import export_scored

    cuts = open_cuts(test) if test else None
    torch.set_num_threads(1)
    recogniser = load(experiment)
    with stage_progress(console):
        exported = export_scored(
            recogniser, out, engine.value, int8=int8, chunk=chunk, cuts=cuts, data=Path(test).name
        )
    size = sum(each.stat().st_size for each in out.rglob("*") if each.is_file())
    print_line(f"{out}: for {engine.value}, {size / 1e6:.1f} MB")
    for name, each in exported.scores.items():
        print_line(f"{name:12} WER {each.wer:7.2%}  CER {each.cer:7.2%}  real-time factor {each.real_time:.3f}")
    for note in exported.notes:
        print_line(note, style="yellow")
    if exported.scores and not accept:
        exported.check()


def _export_weights(experiment: Path, out: Path, engine: Engine, base: str, half: bool) -> None:
    from retort.decoding.recogniser import load
    from retort.export.base import base_of
    from retort.export.ctranslate2 import export_ctranslate2
    from retort.export.wav2vec import export_wav2vec, is_wav2vec
    from retort.export.whisper import export_transformers

    recogniser = load(experiment)
    if engine is Engine.transformers and is_wav2vec(recogniser):
        parameters = export_wav2vec(recogniser, out, half=half)
        print_line(f"{out}: for {engine.value}, {parameters:,} parameters")
        return
    write = export_transformers if engine is Engine.transformers else export_ctranslate2
    written = write(recogniser, base or base_of(experiment), out, half=half)
    print_line(f"{out}: for {engine.value}, {sum(each.numel() for each in written.tensors.values()):,} parameters")
    if not written.padded:
        print_line(
            "this engine pads audio to 30 s, but the model was trained without padding (features.pad_seconds): "
            "compare the error rates",
            style="yellow",
        )
