"""Kaldi data folders: `text`, `wav.scp`, and optionally `utt2spk` and `segments`.

Source of the format: the Kaldi documentation, "Data preparation". lhotse's reader stops at the first
incomplete utterance and does not resolve relative paths, so that the folder is read here into lhotse's
classes, and every unusable utterance is listed.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut, Recording

from retort.audio.files import MAXIMUM_HOURS
from retort.common.errors import BadUtterance, UserError
from retort.corpora.cuts import (
    CheckedCuts,
    Prepared,
    Rejected,
    checked,
    find_audio,
    make_cut,
    open_recording,
    write_split,
)


class Segment(NamedTuple):
    recording: str
    start: float
    """Start in seconds."""
    end: float | None
    """End in seconds; None for the end of the recording."""


def prepare(source: str | Path, out: str | Path, *, maximum_hours: float = MAXIMUM_HOURS) -> Prepared:
    """Write `OUT/NAME.jsonl.gz` for a Kaldi folder, or for each Kaldi folder directly inside `source`.

    Raises:
        UserError: there is no Kaldi folder, `wav.scp` has commands, or a folder has no usable utterance.
    """
    source = Path(source).absolute()
    if not source.is_dir():
        raise UserError("no such folder", where=source, remedy="Choose a Kaldi folder with text and wav.scp")
    folders = [source] if _is_kaldi(source) else _kaldi_folders(source)
    prepared = Prepared()
    for folder in folders or [source]:  # reading an invalid folder raises the missing parts
        write_split(folder.name, read_kaldi(folder, maximum_hours=maximum_hours), Path(out), prepared)
    return prepared


def read_kaldi(
    folder: str | Path, *, texts: bool = True, maximum_hours: float = MAXIMUM_HOURS
) -> CheckedCuts:
    """The utterances of a Kaldi folder, in the order of its `text` (or `segments`, or `wav.scp`).

    Relative paths in `wav.scp` are resolved against the folder, its parent and the working directory. Without
    `utt2spk` every utterance is its own speaker. For duplicate ids the first line is used. With
    `texts=False` (noise) neither `text` nor speakers are read.

    Raises:
        UserError: a file is missing, `wav.scp` has a command, or no utterance is usable.
    """
    folder = Path(folder).absolute()
    _demand(folder, ("text", "wav.scp") if texts else ("wav.scp",))
    problems = _Problems()
    paths = _table(folder / "wav.scp", problems)
    _refuse_pipes(folder, paths)
    segments = _segments(folder / "segments", problems)
    transcripts = _table(folder / "text", problems, may_be_empty=True) if texts else None
    has_speakers = texts and (folder / "utt2spk").is_file()
    speakers = _table(folder / "utt2spk", problems) if has_speakers else None
    recordings = _Recordings(paths, [folder, folder.parent, Path()], maximum_hours)

    def cut(name: str) -> MonoCut:
        if segments is not None and name not in segments:
            raise BadUtterance("in text, but not in segments")
        segment = Segment(name, 0.0, None) if segments is None else segments[name]
        if transcripts is not None and name not in transcripts:
            raise BadUtterance("has audio, but no line in text")
        recording = recordings.open(segment.recording)
        if speakers is not None and name not in speakers:
            raise BadUtterance("has no speaker in utt2spk")
        text = None if transcripts is None else transcripts[name]
        speaker = name if speakers is None else speakers[name]
        return make_cut(name, recording, text, speaker, segment.start, segment.end)

    cuts: list[MonoCut] = []
    audible = paths if segments is None else segments
    for name in dict.fromkeys([*(transcripts or ()), *audible]):
        if name in problems.broken:
            continue  # already listed with its line
        try:
            cuts.append(cut(name))
        except BadUtterance as error:
            problems.rejected.append(Rejected(name, str(error)))
    return checked(cuts, problems.rejected, folder)


class _Problems:
    """Problems found while reading the files of a folder."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []
        self.broken: set[str] = set()
        """Ids with a broken line."""

    def add(self, name: str, reason: str, *, breaks: bool) -> None:
        self.rejected.append(Rejected(name, reason))
        if breaks:
            self.broken.add(name)


class _Recordings:
    """Opens each recording once, however many segments it has; failures are remembered."""

    def __init__(self, paths: dict[str, str], roots: list[Path], maximum_hours: float) -> None:
        self.paths = paths
        self.roots = roots
        self.maximum_hours = maximum_hours
        self.opened: dict[str, Recording | BadUtterance] = {}

    def open(self, name: str) -> Recording:
        if name not in self.opened:
            try:
                if name not in self.paths:
                    raise BadUtterance(f"no audio: {name} is not in wav.scp")
                self.opened[name] = open_recording(
                    name, find_audio(self.paths[name], self.roots), self.maximum_hours
                )
            except BadUtterance as error:
                self.opened[name] = error
        found = self.opened[name]
        if isinstance(found, BadUtterance):
            raise BadUtterance(str(found))
        return found


def _is_kaldi(folder: Path) -> bool:
    return (folder / "wav.scp").is_file() and (folder / "text").is_file()


def _kaldi_folders(folder: Path) -> list[Path]:
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and _is_kaldi(inner))


def _demand(folder: Path, files: tuple[str, ...]) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    if not missing:
        return
    inner = [each.name for each in _kaldi_folders(folder)]
    remedy = f"Choose one of its folders: {', '.join(inner)}" if inner else "Add it, with one line per utterance"
    raise UserError(f"not a Kaldi folder: it has no {' and no '.join(missing)}", where=folder, remedy=remedy)


def _read_lines(path: Path, problems: _Problems) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Not `splitlines`: transcripts may contain U+2028 and similar characters."""
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip(" \t\r")
        except UnicodeDecodeError:
            name = raw.split(maxsplit=1)[0].decode("utf-8", "replace")
            problems.add(name, f"{path.name} line {number}: not UTF-8", breaks=True)
            continue
        if line:
            yield number, line


def _table(path: Path, problems: _Problems, may_be_empty: bool = False) -> dict[str, str]:
    """`id value` lines; broken and duplicate lines are added to `problems`."""
    values: dict[str, str] = {}
    first_lines: dict[str, int] = {}
    for number, line in _read_lines(path, problems):
        name, *rest = re.split(r"[ \t]+", line, maxsplit=1)
        if name in first_lines:
            reason = f"{path.name} line {number}: duplicates line {first_lines[name]}, which is used"
            problems.add(name, reason, breaks=False)
            continue
        first_lines[name] = number
        if not rest and not may_be_empty:
            problems.add(name, f"{path.name} line {number}: nothing after the id", breaks=True)
            continue
        values[name] = rest[0] if rest else ""
    return values


def _segments(path: Path, problems: _Problems) -> dict[str, Segment] | None:
    if not path.is_file():
        return None
    segments: dict[str, Segment] = {}
    for name, value in _table(path, problems).items():
        fields = value.split()
        try:
            recording, start, end = fields[0], float(fields[1]), float(fields[2])
            if not (math.isfinite(start) and math.isfinite(end)):
                raise ValueError
        except (IndexError, ValueError):
            problems.add(name, f"segments: '{value}' is not 'RECORDING START END'", breaks=True)
            continue
        segments[name] = Segment(recording, start, None if end == -1 else end)  # -1 is Kaldi's "to the end"
    return segments


def _refuse_pipes(folder: Path, paths: dict[str, str]) -> None:
    """Refuse commands in a data folder, and suggest a shell line that runs them.

    Raises:
        UserError: with a shell line that writes files into a new folder `wav.*` and a plain `wav.scp`; the old
            one is saved there as `wav.scp.piped`.
    """
    piped = [name for name, path in paths.items() if path.endswith("|")]
    if not piped:
        return
    # Files are numbered, since an id may be any text, and all output is in a new subfolder.
    line = (
        f'D={shlex.quote(str(folder))}; W=$(mktemp -d "$D/wav.XXXXXX") && n=0 && '
        'tr -d \'\\r\' <"$D/wav.scp" | while read -r id command || [ -n "$id" ]; do n=$((n+1)); case "$command" in '
        '*\'|\') (eval "${command%|}") </dev/null >"$W/$n.wav" && printf \'%s %s\\n\' "$id" "$W/$n.wav";; '
        '*) printf \'%s %s\\n\' "$id" "$command";; esac; done >"$W/wav.scp" '
        '&& mv "$D/wav.scp" "$W/wav.scp.piped" && mv "$W/wav.scp" "$D/wav.scp"'
    )
    raise UserError(
        f"{len(piped)} of {len(paths)} entries are commands, the first is {piped[0]}",
        where=folder / "wav.scp",
        remedy=f"Create plain files, from the folder that the commands expect: {line}",
    )
