"""What `retort transcribe` reads and writes: standard input as a file, and a file of text for each of audio."""

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
    """The path of an audio file; of `-` a copy of what standard input holds, for as long as it is needed.

    Raises:
        BadUtterance: as it is raised inside, named as the user named the file; or standard input is empty or closed.
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
    """Where the text of each audio file goes: beside it, or into a folder.

    Args:
        files: as the user named them.
        folder: of all texts; None is that of the audio.
        suffix: of the texts, such as `.srt`.
        overwrite: whether a file that is there may be replaced.

    Raises:
        UserError: two texts would be one file, one is there already, or the place cannot be written.
    """
    targets: dict[str, Path] = {}
    taken: dict[Path, str] = {}
    for file in dict.fromkeys(files):
        stem = "stdin" if file == STDIN else Path(file).stem
        if folder is None and (file == STDIN or (os.path.exists(file) and not os.path.isfile(file))):
            raise UserError("has no folder for its text", where=file, remedy="Give --output-dir")
        target = (Path(file).parent if folder is None else folder) / f"{stem}{suffix}"
        if target in taken:
            raise UserError(
                f"the texts of {taken[target]} and {file} would both be written here",
                where=target,
                remedy="Rename one, or transcribe them into different folders with --output-dir",
            )
        if os.path.isdir(target) or (os.path.lexists(target) and not overwrite):
            remedy = "Add --overwrite, or choose another --output-dir"
            raise UserError("is there already", where=target, remedy=remedy)
        targets[file], taken[target] = target, file
    for place in {target.parent for target in targets.values()}:
        check_writable(place)
    return targets
