"""`retort prepare`: a corpus as lhotse manifests."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retort.common.files import check_local
from retort.verbs.console import check_places, console, finite, local_path, print_line, print_rejected


class Kind(StrEnum):
    """Of corpora."""

    aishell1 = "aishell1"
    librispeech = "librispeech"
    kaldi = "kaldi"
    table = "table"
    synthetic = "synthetic"


def prepare(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="Layout of the corpus.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder or table; for `synthetic` a file of sentences, or - for the built-in grammar.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="OUT", help="Folder for the manifests, OUT/NAME.jsonl.gz, one a split."
        ),
    ],
    held_out: Annotated[
        float,
        typer.Option(
            help="table without a split column: share of speakers for validation, and again for test."
        ),
    ] = 0.0,
    max_hours: Annotated[
        float,
        typer.Option(
            min=0.0, callback=finite, help="table, kaldi: a longer recording is left out and listed."
        ),
    ] = 24.0,
) -> None:
    """Turn a corpus into lhotse manifests."""
    from retort.common.progress import stage_progress
    from retort.corpora import PREPARERS

    check_local(source)
    check_places(out)
    options = {"held_out": held_out} if kind is Kind.table else {}
    if kind in (Kind.table, Kind.kaldi):
        options["maximum_hours"] = max_hours
    with stage_progress(console) as progress:
        if kind is Kind.synthetic:
            options["progress"] = lambda done, total: progress("synthesis", done, total)  # type: ignore[assignment]
        grammar = kind is Kind.synthetic and source == "-"
        prepared = PREPARERS[kind.value](None if grammar else Path(source), out, **options)
    for name, manifest in prepared.manifests.items():
        hours = prepared.seconds[name] / 3600
        print_line(f"{manifest}: {prepared.utterances[name]:,} utterances, {hours:.2f} h")
    print_rejected(len(prepared.rejected), f"{out}/*.rejected.tsv")
