"""The README of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from retort.common.files import write_whole
from retort.export.scores import EngineScore, scores_table


def write_readme(
    folder: Path, lead: str, command: Sequence[str], scores: Mapping[str, EngineScore], data: str, notes: Sequence[str] = ()
) -> None:
    """Write `README.md`.

    Args:
        folder: folder of the export.
        lead: what the files are.
        command: command lines that run it.
        scores: error rates by engine; may be empty.
        data: name of the data that they are of.
        notes: limits of the engine, one paragraph each.
    """
    parts = [f"# {folder.resolve().name}", lead, "```\n" + "\n".join(command) + "\n```"]
    if scores:
        parts += [f"Errors on `{data}`, each by the engine itself, on one thread:", scores_table(scores)]
    write_whole(folder / "README.md", "\n\n".join([*parts, *notes]) + "\n")
