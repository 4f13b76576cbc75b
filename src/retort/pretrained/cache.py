"""The cache of converted pretrained models: `$RETORT_CACHE/NAME`."""

from __future__ import annotations

import os
from pathlib import Path

from retort.common.errors import UserError
from retort.pretrained.catalogue import load_catalogue

RECORD = "retort.json"
"""Written last into a folder of the cache: where its files come from."""


def cache_folder() -> Path:
    """`$RETORT_CACHE`, or `~/.cache/retort`; it need not exist."""
    return Path(os.environ.get("RETORT_CACHE") or "~/.cache/retort").expanduser()


def locate(name: str) -> Path | None:
    """The folder of a model of the catalogue, or nothing where it was not fetched (or `name` is not in it)."""
    if name not in load_catalogue():
        return None
    folder = cache_folder() / name
    return folder if (folder / RECORD).is_file() else None


def resolve(name: str) -> str:
    """The folder in the cache of a short name; another name (a folder, a name of the hub) as it is.

    A folder of that name in the working directory is preferred to the catalogue.

    Raises:
        UserError: the catalogue has this name, but it was not fetched.
    """
    if name not in load_catalogue() or Path(name).is_dir():
        return name
    if (folder := locate(name)) is None:
        raise UserError(f"not in {cache_folder()}", where=name, remedy=f"Run: retort fetch {name}")
    return str(folder)
