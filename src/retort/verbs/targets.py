"""Input and output files of `retort transcribe`: standard input as a file, and one text file per audio file."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from retort.common.errors import BadUtterance, UserError
from retort.common.files import check_writable

STDIN = "-"


@contextmanager
def audio_file(file: str) -> Iterator[str]:
    """Yield the path of an audio file; for `-`, of a temporary copy of standard input.

    Raises:
        BadUtterance: standard input is empty or closed; errors raised inside name `standard input`, not the copy.
    """
    if file != STDIN:
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="retort-", suffix=".audio") as copy:
        if sys.stdin is not None:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        if not copy.tell():
            raise BadUtterance(
                "is empty", where="standard input", remedy="Pipe an audio file into the command"
            )
        try:
            yield copy.name
        except BadUtterance as error:
            remedy = error.remedy.replace(copy.name, "FILE")
            raise BadUtterance(error.what, where="standard input", remedy=remedy) from None


def text_files(files: Sequence[str], folder: Path | None, suffix: str, overwrite: bool) -> dict[str, Path]:
    """Output path of each audio file's text.

    Args:
        files: audio files, as given on the command line.
        folder: output folder; None writes each text next to its audio file.
        suffix: suffix of the texts, such as `.srt`.
        overwrite: whether existing files may be replaced.

    Raises:
        UserError: two texts would have the same path, a file exists, or the folder cannot be written.
    """
    targets: dict[str, Path] = {}
    taken: dict[Path, str] = {}
    for file in dict.fromkeys(files):
        stem = "stdin" if file == STDIN else Path(file).stem
        if folder is None and (file == STDIN or (os.path.exists(file) and not os.path.isfile(file))):
            raise UserError("is not a file, so it has no folder for its text", where=file, remedy="Give --output-dir")
        target = (Path(file).parent if folder is None else folder) / f"{stem}{suffix}"
        if target in taken:
            raise UserError(
                f"the texts of {taken[target]} and {file} would both be written here",
                where=target,
                remedy="Rename one, or transcribe them into different folders with --output-dir",
            )
        if os.path.isdir(target) or (os.path.lexists(target) and not overwrite):
            remedy = "Add --overwrite, or choose another --output-dir"
            raise UserError("exists already", where=target, remedy=remedy)
        targets[file], taken[target] = target, file
    for place in {target.parent for target in targets.values()}:
        check_writable(place)
    return targets
