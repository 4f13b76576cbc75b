"""An experiment's folder: whose it is, and parts of it that are written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from retort.checksums import seal
from retort.errors import UserError
from retort.files import flush, write_whole
from retort.json_reader import read_json
from retort.recipe import read_dict, recipe_to_dict


def claim(folder: Path, recipe: object) -> None:
    """Make the experiment's folder, or check that it is of the same recipe."""
    path = folder / "recipe.json"
    wanted = recipe_to_dict(recipe)
    # Where nothing was made yet, a run failed early and the recipe may have been mended.
    if path.exists() and any((folder / made).exists() for made in ("tokenizer", "checkpoints", "model")):
        try:
            there = _read(path, type(recipe))
        except ValueError as error:
            raise UserError(f"not valid JSON ({error})", where=path, remedy="Remove the folder") from None
        changed = sorted(_differences(there, wanted))
        if changed:
            raise UserError(
                f"it holds a run of another recipe ({', '.join(changed)})",
                where=folder,
                remedy="Give name=ANOTHER to train beside it, or remove the folder",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror or error})", where=folder) from None
    if not is_of(folder, recipe):  # under torchrun every process comes here, and others may be reading
        write_whole(path, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")


def is_of(folder: Path, recipe: object) -> bool:
    """Whether the experiment's folder is of just this recipe; keys that are newer than the folder had their defaults."""
    try:
        return _read(folder / "recipe.json", type(recipe)) == recipe_to_dict(recipe)
    except (OSError, ValueError, UserError):
        return False


def _read(path: Path, kind: type) -> dict[str, Any]:
    return recipe_to_dict(read_dict(kind, read_json(path), str(path)))


def save_whole(save: Callable[[Path], object], path: Path) -> None:
    """Let `save` write a folder, which bears its name once it is whole.

    Raises:
        UserError: it cannot be written (disk full); what was there stays.
    """
    partial, former = (path.with_name(f"{path.name}.{name}") for name in ("partial", "former"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        save(partial)
        seal(partial)
        if path.exists():  # a folder cannot take the place of another in one step
            shutil.rmtree(former, ignore_errors=True)
            path.rename(former)
        partial.rename(path)
        flush([path])
        shutil.rmtree(former, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot be written ({error})", where=path, remedy="Free space, run again: nothing is lost"
        ) from None


def _differences(old: object, new: object, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        return [
            line for name in names for line in _differences(old.get(name), new.get(name), f"{key}.{name}")
        ]
    return [] if old == new else [f"{key[1:]}: {old} there, {new} here"]
