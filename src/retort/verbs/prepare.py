"""`retort prepare`: conversion of a corpus to lhotse manifests."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retort.common.files import check_local
from retort.verbs.console import check_places, console, finite, local_path, print_line, print_rejected


class Kind(StrEnum):
    """Formats of corpora."""

    aishell1 = "aishell1"
    librispeech = "librispeech"
    kaldi = "kaldi"
    table = "table"
    synthetic = "synthetic"


def prepare(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="Format of the corpus.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder of the corpus, or the table (CSV, TSV); for `synthetic` a text file with one sentence per "
            "line, or - for sentences of the built-in grammar.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="OUT", help="Output folder; one manifest per split, OUT/NAME.jsonl.gz."
        ),
    ],
    held_out: Annotated[
        float,
        typer.Option(
            help="table without a column `split`: share of the utterances in validation, and in test. With three or "
            "more speakers, no speaker is in two of the sets; otherwise no text is."
        ),
    ] = 0.0,
    max_hours: Annotated[
        float,
        typer.Option(
            min=0.0, callback=finite, help="table, kaldi: longer recordings are skipped and listed."
        ),
    ] = 24.0,
) -> None:
    """Convert a corpus to lhotse manifests."""
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
