"""The cache of converted pretrained models: `$RETORT_CACHE/NAME`."""

from __future__ import annotations

import os
from pathlib import Path

from retort.common.errors import UserError
from retort.pretrained.catalogue import load_catalogue

RECORD = "retort.json"
"""Record of the source, written last into a folder of the cache."""


def cache_folder() -> Path:
    """`$RETORT_CACHE`, or `~/.cache/retort`; it may not exist."""
    return Path(os.environ.get("RETORT_CACHE") or "~/.cache/retort").expanduser()


def locate(name: str) -> Path | None:
    """The folder of a model of the catalogue; None if it was not fetched or is not in the catalogue."""
    if name not in load_catalogue():
        return None
    folder = cache_folder() / name
    return folder if (folder / RECORD).is_file() else None


def resolve(name: str) -> str:
    """The folder in the cache of a short name; other names (a folder, a Hugging Face name) are returned unchanged.

    A folder of that name in the working directory has precedence.

    Raises:
        UserError: the model is in the catalogue, but was not fetched.
    """
    if name not in load_catalogue() or Path(name).is_dir():
        return name
    if (folder := locate(name)) is None:
        raise UserError(f"it is not in {cache_folder()}", where=name, remedy=f"Run: retort fetch {name}")
    return str(folder)
