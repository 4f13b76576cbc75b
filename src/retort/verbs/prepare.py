"""`retort prepare`: conversion of a corpus to lhotse manifests."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retort.common.errors import UserError
from retort.common.files import check_local
from retort.verbs.console import (
    check_places,
    console,
    finite,
    local_path,
    part_of,
    print_line,
    print_rejected,
)

if TYPE_CHECKING:
    from retort.corpora.cuts import Prepared


class Kind(StrEnum):
    """Formats of corpora."""

    aishell1 = "aishell1"
    librispeech = "librispeech"
    kaldi = "kaldi"
    table = "table"
    synthetic = "synthetic"


class Audio(StrEnum):
    """Audio in shards."""

    stored = "stored"
    flac = "flac"
    opus = "opus"


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
    shards: Annotated[
        bool,
        typer.Option(
            "--shards", help="Also write the audio of each split in shards, OUT/NAME/, for data.train (docs/scale.md)."
        ),
    ] = False,
    audio: Annotated[
        Audio,
        typer.Option(
            help="Audio in shards: the files as they are (segments of a recording become FLAC), FLAC, or Opus, which is "
            "smaller and lossy."
        ),
    ] = Audio.stored,
    shard_cuts: Annotated[
        int, typer.Option(min=1, max=100_000, help="Maximum number of utterances of a shard; 4 hours at most.")
    ] = 1000,
    jobs: Annotated[
        int,
        typer.Option("--workers", min=1, max=1024, help="Number of processes. The result does not depend on it."),
    ] = 1,
    part: Annotated[
        Any,
        typer.Option(
            parser=part_of,
            help="Do only part I of N, for arrays of jobs. The last part to finish writes the manifests. With --shards, "
            "run all parts again when the manifests are there.",
        ),
    ] = "1/1",
) -> None:
    """Convert a corpus to lhotse manifests, and to shards.

    An interrupted command with --shards or --part continues when it is run again.
    """
    from retort.common.progress import stage_progress
    from retort.corpora import PREPARERS
    from retort.corpora.parts import Work, prepare_in_parts

    check_local(source)
    check_places(out)
    options = {"held_out": held_out} if kind is Kind.table else {}
    if kind in (Kind.table, Kind.kaldi):
        options["maximum_hours"] = max_hours
    with stage_progress(console) as progress:
        if kind is Kind.synthetic:
            options["progress"] = lambda done, total: progress("synthesis", done, total)  # type: ignore[assignment]
        grammar = kind is Kind.synthetic and source == "-"
        if kind is Kind.synthetic:
            if part[1] > 1:
                raise UserError("synthetic speech is not prepared in parts", remedy="Leave out --part")
            prepared = PREPARERS[kind.value](None if grammar else Path(source), out, **options)
        else:
            found = prepare_in_parts(Work(kind.value, source, str(out), options), part, jobs)
            if found is None:
                print_line(f"part {part[0]} of {part[1]} is done; the last part writes the manifests")
                return
            prepared = found
    for name, manifest in prepared.manifests.items():
        hours = prepared.seconds[name] / 3600
        print_line(f"{manifest}: {prepared.utterances[name]:,} utterances, {hours:.2f} h")
    print_rejected(len(prepared.rejected), f"{out}/*.rejected.tsv")
    if shards:
        _write_shards(prepared, audio.value, shard_cuts, part, jobs)


def _write_shards(prepared: Prepared, audio: str, most: int, part: tuple[int, int], processes: int) -> None:
    """Write the shards of every split beside its manifest."""
    from retort.common.progress import stage_progress
    from retort.corpora.open_cuts import open_cuts
    from retort.corpora.write_shards import write_shards

    for name, manifest in prepared.manifests.items():
        folder = manifest.parent / name
        with stage_progress(console) as progress:
            written = write_shards(
                list(open_cuts(manifest).cuts),
                folder,
                audio=audio,
                shard_cuts=most,
                part=part,
                processes=processes,
                progress=partial(progress, f"shards of {name}"),
            )
        ending = "" if written.complete else "; the last part completes them"
        print_line(f"{folder}: {written.done:,} of {written.total:,} shards{ending}")
        print_rejected(len(written.rejected), f"{folder}/rejected.tsv")
