"""Corpora as tables: CSV, TSV or JSONL with columns `audio` and `text`, and optionally `speaker` and `split`."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut

from retort.audio.files import MAXIMUM_HOURS
from retort.common.errors import BadUtterance, UserError
from retort.common.json_reader import parse_json
from retort.corpora.cuts import (
    Prepared,
    Rejected,
    checked,
    find_audio,
    make_cut,
    open_recording,
    write_split,
)

NEEDED = ("audio", "text")
KNOWN = (*NEEDED, "speaker", "split")


class Row(NamedTuple):
    line: int
    audio: str
    text: str
    speaker: str
    """Empty if the table has none."""
    split: str


def prepare(
    source: str | Path, out: str | Path, *, held_out: float = 0.0, maximum_hours: float = MAXIMUM_HOURS
) -> Prepared:
    """Write `OUT/SPLIT.jsonl.gz` for each value of the column `split`; without it, `OUT/train.jsonl.gz`.

    Relative audio paths are resolved against the table's folder, then the working directory. An utterance is named
    by its file, or by its path if two files have the same name. A row without a speaker is its own speaker.

    Args:
        source: `*.csv`, `*.tsv` (no quoting) or `*.jsonl`, UTF-8.
        held_out: for a table without `split`: about this fraction of the utterances each is assigned to `validation`
            and to `test`, the rest to `train`. By speaker if there are three or more of them (none is in two
            splits), otherwise by text (no sentence is in two splits). The division is deterministic.
        maximum_hours: longer recordings are rejected.

    Raises:
        UserError: the table does not exist, columns are missing or unknown, nothing is usable, or a split would be empty.
    """
    source, out = Path(source).absolute(), Path(out)
    if not 0 <= held_out < 0.5:
        raise UserError(
            f"held_out is {held_out:g}", remedy="Set a share from 0 to below 0.5, for example 0.1"
        )
    rejected: list[Rejected] = []
    columns, rows = _read(source, rejected)
    if held_out and "split" in columns:
        raise UserError(
            "has a column split, so nothing is held out", where=source, remedy="Remove held_out"
        )
    cuts: dict[Row, MonoCut] = {}
    names: dict[str, int] = {}
    for row, name in zip(rows, _names(rows)):
        try:
            if not _is_name(row.split):
                raise BadUtterance(f"line {row.line}: split is '{row.split}', not a name")
            if name in names:
                raise BadUtterance(
                    f"line {row.line}: its audio is also on line {names[name]}, which is used"
                )
            names[name] = row.line
            path = find_audio(row.audio, [source.parent, Path()])
            cuts[row] = make_cut(
                name, open_recording(name, path, maximum_hours), row.text, row.speaker or name
            )
        except BadUtterance as error:
            rejected.append(Rejected(name, str(error)))
    checked(cuts.values(), rejected, source)
    splits = _hold_out(list(cuts), held_out, source) if held_out else {row: row.split for row in cuts}
    claimed = {name: row.split for row, name in zip(rows, _names(rows))}
    return _write(cuts, splits, rejected, claimed, out)


def _write(
    cuts: dict[Row, MonoCut],
    splits: dict[Row, str],
    rejected: list[Rejected],
    claimed: dict[str, str],
    out: Path,
) -> Prepared:
    """Write the splits; `claimed` has the split of rejected utterances."""
    prepared = Prepared()
    order = list(dict.fromkeys([*splits.values(), *filter(_is_name, claimed.values())]))
    listed: dict[str, list[Rejected]] = {split: [] for split in order}
    for entry in rejected:
        split = claimed.get(entry.id, "")
        listed[split if split in listed else order[0]].append(entry)  # some lines have no split
    for split in order:
        mine = [cut for row, cut in cuts.items() if splits[row] == split]
        write_split(split, checked(mine, listed[split], split), out, prepared)
    return prepared


def _read(source: Path, rejected: list[Rejected]) -> tuple[set[str], list[Row]]:
    """Columns of the table and its rows."""
    if not source.is_file():
        raise UserError("no such table", where=source, remedy="Choose a CSV, TSV or JSONL file")
    try:
        content = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 (byte {error.start})", where=source, remedy="Save the table as UTF-8"
        ) from None
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
    if source.suffix.lower() not in readers:
        raise UserError(
            f"a table is a {', '.join(readers)} file", where=source, remedy="Rename it according to its format"
        )
    columns: set[str] = set()
    rows: list[Row] = []
    for line, fields in readers[source.suffix.lower()](content, source, rejected):
        if not columns >= set(fields):
            columns |= set(fields)
            _check_columns(columns, f"{source} line {line}" if rows else str(source))
        missing = [name for name in NEEDED if name not in fields]
        if missing:
            rejected.append(Rejected(f"{source.name}:{line}", f"line {line}: no {' and no '.join(missing)}"))
            continue
        values = {name: (fields.get(name) or "").strip() for name in KNOWN}
        split = values["split"] if "split" in fields else "train"
        if not values["audio"]:
            rejected.append(Rejected(f"{source.name}:{line}", f"line {line}: audio is empty"))
            continue
        rows.append(Row(line, values["audio"], values["text"], values["speaker"], split))
    return columns, rows


def _check_columns(columns: set[str], where: str) -> None:
    found = f"columns found: {', '.join(sorted(columns)) or 'none'}"
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise UserError(
            f"no column {' and no column '.join(missing)} ({found})",
            where=where,
            remedy=f"Name the columns {', '.join(NEEDED)}, and if you have them speaker, split",
        )
    unknown = sorted(columns - set(KNOWN))
    if unknown:
        raise UserError(
            f"unknown column {', '.join(unknown)} ({found})",
            where=where,
            remedy=f"Remove it, or rename it to one of {', '.join(KNOWN)}",
        )


def _read_csv(content: str, source: Path, rejected: list[Rejected]) -> Iterator[tuple[int, dict[str, str]]]:
    if source.suffix.lower() == ".tsv":
        table = csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        table = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] = []
    try:
        for fields in table:
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = [field.strip().lower() for field in fields]
                if len(set(header)) < len(header):
                    raise UserError(f"two columns have the same name ({', '.join(header)})", where=source)
                _check_columns(set(header), str(source))
                continue
            if len(fields) != len(header):
                what = f"{len(fields)} fields, the header has {len(header)}"
                hint = ' (quote texts that contain commas)' if len(fields) > len(header) else ""
                name = f"{source.name}:{table.line_num}"
                rejected.append(Rejected(name, f"line {table.line_num}: {what}{hint}"))
                continue
            yield table.line_num, dict(zip(header, fields))
    except csv.Error as error:
        raise UserError(f"line {table.line_num}: {error}", where=source, remedy="Correct the quotes") from None
    if not header:
        raise UserError(
            "the table is empty", where=source, remedy="The first line must have the columns audio,text"
        )


def _read_jsonl(content: str, source: Path, rejected: list[Rejected]) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        name = f"{source.name}:{number}"
        try:
            fields = parse_json(line)
        except ValueError:
            rejected.append(Rejected(name, f"line {number}: not valid JSON"))
            continue
        if not isinstance(fields, dict):
            rejected.append(Rejected(name, f"line {number}: not a JSON object"))
            continue
        bad = [key for key in NEEDED if key in fields and not isinstance(fields[key], str)]
        if bad:
            rejected.append(Rejected(name, f"line {number}: {' and '.join(bad)} is not a string"))
            continue
        yield number, {key: "" if value is None else str(value) for key, value in fields.items()}


def _names(rows: list[Row]) -> list[str]:
    """Ids: file name without suffix, path without suffix, or path: the first of these that is
    unique."""
    candidates: dict[str, tuple[str, ...]] = {}
    for audio in {row.audio for row in rows}:
        stem = os.path.splitext(audio)[0]
        parts = [[Path(stem).name], Path(stem).parts, Path(audio).parts]
        candidates[audio] = tuple(
            re.sub(r"\s+", "_", "-".join(part for part in each if part not in ("/", ".."))) for each in parts
        )
    counts = [Counter(names[level] for names in candidates.values()) for level in range(3)]

    def name(audio: str) -> str:
        names = candidates[audio]
        return (
            next((names[level] for level in range(3) if counts[level][names[level]] == 1), names[2]) or audio
        )

    return [name(row.audio) for row in rows]


def _is_name(split: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*", split) is not None


def _hold_out(rows: list[Row], share: float, where: Path) -> dict[Row, str]:
    """The split of each row."""
    speakers = {row.speaker for row in rows}
    by_speaker = "" not in speakers and len(speakers) >= 3
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = row.speaker if by_speaker else " ".join(row.text.casefold().split())
        groups.setdefault(key, []).append(row)
    if len(groups) < 3:
        raise UserError(
            f"{len(groups)} different texts, too few for train, validation and test",
            where=where,
            remedy="Add data, or remove held_out",
        )
    waiting = sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())
    splits = dict.fromkeys(rows, "train")
    for split in ("test", "validation"):
        for key in _take(waiting, {key: len(groups[key]) for key in waiting}, share * len(rows)):
            waiting.remove(key)
            splits.update(dict.fromkeys(groups[key], split))
    return dict(sorted(splits.items(), key=lambda item: ("train", "validation", "test").index(item[1])))


def _take(keys: list[str], sizes: dict[str, int], wanted: float) -> list[str]:
    """Groups in order while they fit into `wanted` utterances; the smallest one if none does."""
    taken: list[str] = []
    total = 0
    for key in keys:
        if total + sizes[key] <= wanted:
            taken.append(key)
            total += sizes[key]
    return taken or [min(keys, key=lambda key: sizes[key])]
