"""Wrappers for lhotse's recipes, which stop at the first unreadable file, and print.

A recipe is run on a view of the corpus: a folder of links to readable audio files, with
their transcripts.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lhotse import Recording

from retort.common.errors import BadUtterance, UserError
from retort.corpora.cuts import CheckedCuts, Rejected, checked, make_cut, open_recording
from retort.corpora.probes import read_header


def read_transcripts(path: Path, rejected: list[Rejected]) -> dict[str, str]:
    """`id text` lines as id to text; a line without a text goes to `rejected`.

    Raises:
        UserError: not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError("not UTF-8", where=path, remedy="Unpack the corpus again") from None
    texts: dict[str, str] = {}
    for line in lines:
        name, *text = line.split(maxsplit=1)[:2] or [""]
        if text:
            texts[name] = text[0].strip()
        elif name:
            rejected.append(Rejected(name, f"its transcript in {path.name} is empty"))
    return texts


def link_audio(audio: Mapping[str, Path], links: Mapping[str, Path], rejected: list[Rejected]) -> list[str]:
    """Link each readable file into the view; return the linked ids in order."""
    linked: list[str] = []
    for name, path in audio.items():
        try:
            if not path.is_file():
                raise BadUtterance("no such file", where=path)
            read_header(path)
        except BadUtterance as error:
            rejected.append(Rejected(name, str(error)))
            continue
        links[name].parent.mkdir(parents=True, exist_ok=True)
        links[name].symlink_to(path.absolute())
        linked.append(name)
    return linked


def run_recipe(recipe: Callable[..., Any], folder: Path, **options: Any) -> dict[str, Any]:
    """The output of a recipe for each part, `{"recordings": ..., "supervisions": ...}`, without its printing."""
    with _quietly():
        found: dict[str, Any] = recipe(folder, **options)
    return found


def recipe_cuts(manifests: Mapping[str, Any], rejected: list[Rejected], where: Path) -> CheckedCuts:
    """Cuts of one part, by id, with the audio files that the view links to.

    Raises:
        UserError: no utterance is left.
    """
    recordings: dict[str, Recording] = {each.id: each for each in manifests["recordings"]}
    cuts = []
    for supervision in sorted(manifests["supervisions"], key=lambda each: str(each.id)):
        path = Path(os.readlink(recordings[supervision.recording_id].sources[0].source))
        try:
            recording = open_recording(supervision.recording_id, path)  # lhotse uses the length in the header
            cuts.append(make_cut(supervision.id, recording, supervision.text, supervision.speaker))
        except BadUtterance as error:
            rejected.append(Rejected(supervision.id, str(error)))
    return checked(cuts, rejected, where)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    # The recipes call logging.info, which installs a handler on the current stderr.
    guard = logging.NullHandler()
    logging.root.addHandler(guard)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.removeHandler(guard)
