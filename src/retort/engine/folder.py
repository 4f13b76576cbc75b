"""An experiment's folder: its recipe, and subfolders that are written atomically."""

from __future__ import annotations

import contextlib
import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from retort.common.checksums import seal
from retort.common.errors import UserError
from retort.common.files import clear_partial, flush, remove, write_whole
from retort.common.json_reader import read_json
from retort.common.locks import LOCK, is_first_process, one_at_a_time, try_lock
from retort.config.loading import read_dict, recipe_to_dict


def claim(folder: Path, recipe: object) -> None:
    """Create the experiment's folder, or check that it has the same recipe."""
    path = folder / "recipe.json"
    wanted = recipe_to_dict(recipe)
    # A run that failed early has made nothing, and its recipe may have been corrected.
    if path.exists() and any((folder / made).exists() for made in ("tokenizer", "checkpoints", "model")):
        try:
            there = _read(path, type(recipe))
        except ValueError as error:
            raise UserError(f"not valid JSON ({error})", where=path, remedy="Remove the folder") from None
        changed = sorted(_differences(there, _what_counts(wanted)))
        if changed:
            raise UserError(
                f"it contains a run of another recipe ({', '.join(changed)})",
                where=folder,
                remedy="Set name=ANOTHER to train in another folder, or remove this one",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror or error})", where=folder) from None
    if not is_of(folder, recipe):  # under torchrun every process runs this while others may read
        write_whole(path, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")


def is_of(folder: Path, recipe: object) -> bool:
    """Whether the experiment's folder is of just this recipe; keys that are newer than the folder had their defaults."""
    try:
        return _read(folder / "recipe.json", type(recipe)) == _what_counts(recipe_to_dict(recipe))
    except (OSError, ValueError, UserError):
        return False


def _read(path: Path, kind: type) -> dict[str, Any]:
    return _what_counts(recipe_to_dict(read_dict(kind, read_json(path), str(path))))


def _what_counts(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the settings that only permit a run to start."""
    training = {key: value for key, value in recipe["training"].items() if key != "allow"}
    return {**recipe, "training": training}


def save_whole(save: Callable[[Path], object], path: Path) -> None:
    """Let `save` write a folder, which bears its name once it is whole.

    One that is there with the same content stays as it is. Of two processes that write the same folder one waits.

    Raises:
        UserError: it cannot be written (disk full, a file of its name); what was there stays.
    """
    partial, former = (path.with_name(f"{path.name}.{name}") for name in ("partial", "former"))
    with one_at_a_time(path.with_name(f".{path.name}.lock")):
        try:
            remove(partial)
            if path.exists() and not path.is_dir():
                raise UserError("a file exists in the place of the folder", where=path, remedy="Move it away")
            save(partial)
            seal(partial)
            if path.exists() and not _equal(path, partial):
                # A folder cannot take the place of another in one step.
                remove(former)
                path.rename(former)
            if not path.exists():
                partial.rename(path)
            flush([path])
            remove(former)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot be written ({error})", where=path, remedy="Free space and run again"
            ) from None
        finally:
            remove(partial)


def tidy(folder: Path) -> None:
    """Take away what runs of an experiment that were killed left half written; no other may be at work in it."""
    if not is_first_process():
        return
    clear_partial(folder, within=True)
    for name in ("tokenizer", "units", "model"):
        whole, former = folder / name, folder / f"{name}.former"
        if former.is_dir() and not whole.exists():
            with contextlib.suppress(OSError):
                former.rename(whole)
        for left in (former, folder / f"{name}.partial", folder / f".{name}.lock"):
            remove(left)


def tidy_if_free(folder: Path) -> None:
    """The same of a finished experiment, which may lie on a disk that is only read."""
    with contextlib.suppress(UserError):
        if (lock := try_lock(folder / LOCK)) is not None:
            try:
                tidy(folder)
            finally:
                lock.release()


def _equal(first: Path, second: Path) -> bool:
    """Whether two folders have the same files."""
    files = [sorted(each.relative_to(root) for each in root.rglob("*")) for root in (first, second)]
    return files[0] == files[1] and all(
        (first / each).is_dir() == (second / each).is_dir()
        and ((first / each).is_dir() or filecmp.cmp(first / each, second / each, shallow=False))
        for each in files[0]
    )


def _differences(old: object, new: object, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys([*old, *new]))
        return [
            line for name in names for line in _differences(old.get(name), new.get(name), f"{key}.{name}")
        ]
    return [] if old == new else [f"{key[1:]}: {old} there, {new} here"]
