"""Cuts: utterances with audio, text and speaker. Opened and checked line by line; made and written."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.serialization import deserialize_item

from retort.audio.files import audio_info
from retort.errors import BadUtterance, UserError

DATA_VARIABLE = "RETORT_DATA"
TOLERANCE = 0.1
"""Seconds by which an utterance may run over the end of its recording (rounded times); it is clipped."""


@dataclass(frozen=True)
class Rejected:
    """An utterance that is left out, and why."""

    id: str
    """Utterance id, or file and line where there is no id."""
    reason: str


@dataclass
class CheckedCuts:
    cuts: CutSet
    """Each a `MonoCut` named by its utterance id, with an absolute audio path; with one supervision unless
    opened with `texts=False`."""
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class Prepared:
    """What a `prepare` function wrote. Keys are splits."""

    manifests: dict[str, Path] = field(default_factory=dict)
    utterances: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    """Of all splits; those of one are also in `OUT/SPLIT.rejected.tsv`."""


def find_data(path: str | Path) -> Path:
    """The absolute path of data that a recipe or a command names.

    A relative path is tried from the working directory, then `$RETORT_DATA`, then `./data`, then
    `../shared/data`, a folder that several checkouts of a project share.

    Raises:
        UserError: it is nowhere; lists the places.
    """
    wanted = Path(path).expanduser()
    if wanted.is_absolute():
        if not wanted.exists():
            raise UserError("no such file or folder", where=wanted, remedy="Check the path")
        return wanted
    roots = [Path()]
    if variable := os.environ.get(DATA_VARIABLE):
        roots.append(Path(variable).expanduser())
    roots += [Path("data"), Path("../shared/data")]
    for root in roots:
        if (root / wanted).exists():
            return Path(os.path.abspath(root / wanted))
    tried = ", ".join(str(root / wanted) for root in roots)
    raise UserError(
        f"no such file or folder (tried {tried})",
        where=path,
        remedy=f"Check the path, or set {DATA_VARIABLE} to the folder that it starts from",
    )


def open_cuts(path: str | Path, *, texts: bool = True) -> CheckedCuts:
    """Open a lhotse manifest of cuts (`*.jsonl`, `*.jsonl.gz`) or a Kaldi folder; see :func:`find_data`.

    A relative audio path inside a manifest is tried from the working directory, the manifest's folder and the
    folder above. Audio files are looked for, not read. With `texts=False` (noise) neither text nor
    supervision is asked for, and a manifest of recordings will do.

    Raises:
        UserError: nothing there, not a manifest, or no usable utterance in it.
    """
    found = find_data(path)
    if found.is_dir():
        from retort.corpora.kaldi import read_kaldi  # it builds its cuts with the functions below

        return read_kaldi(found, texts=texts)
    if not found.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(
            "neither a manifest (*.jsonl, *.jsonl.gz) nor a Kaldi folder",
            where=found,
            remedy="Make one with `retort prepare`",
        )
    cuts: dict[str, MonoCut] = {}
    rejected: list[Rejected] = []
    for number, line in _lines(found):
        if not line.strip():
            continue
        name = f"{found.name}:{number}"
        try:
            item = _parse(line)
            name = str(getattr(item, "id", "")) or name
            cut = _check(item, [Path(), found.parent, found.parent.parent], texts)
            if cut.id in cuts:
                raise BadUtterance("its id stands on an earlier line too")
            cuts[cut.id] = cut
        except BadUtterance as error:
            rejected.append(Rejected(name, f"line {number}: {error}"))
    return checked(cuts.values(), rejected, found)


def checked(cuts: Iterable[MonoCut], rejected: list[Rejected], where: str | Path) -> CheckedCuts:
    """The two together.

    Raises:
        UserError: no cut is left; tells the first reason.
    """
    kept = list(cuts)
    if kept:
        return CheckedCuts(CutSet.from_cuts(kept), rejected)
    if not rejected:
        raise UserError("no utterance in it", where=where, remedy="Give data that is not empty")
    first = f"{rejected[0].id}: {rejected[0].reason}".rstrip(".")
    raise UserError(
        f"none of {len(rejected)} utterances can be used; the first is {first}",
        where=where,
        remedy="Mend the data or its paths",
    )


def find_audio(path: str, roots: Sequence[Path]) -> Path:
    """Absolute path of an audio file; a relative one is tried from each root in turn.

    Raises:
        BadUtterance: no such file.
    """
    wanted = Path(path)
    for root in roots:
        if os.path.isfile(root / wanted):
            return Path(os.path.abspath(root / wanted))
    folders = ", ".join(str(root.absolute()) for root in roots)
    tried = "" if wanted.is_absolute() else f" (tried from {folders})"
    raise BadUtterance(f"no audio file {path}{tried}")


def open_recording(name: str, path: Path) -> Recording:
    """The manifest entry of a file at its true rate; reads the header only.

    Raises:
        BadUtterance: the file cannot be read as audio or is empty.
    """
    info = audio_info(path)
    return Recording(
        id=name,
        sources=[AudioSource(type="file", channels=list(range(info.channels)), source=str(path.absolute()))],
        sampling_rate=info.sampling_rate,
        num_samples=info.samples,
        duration=info.samples / info.sampling_rate,
    )


def make_cut(
    name: str,
    recording: Recording,
    text: str | None,
    speaker: str,
    start: float = 0.0,
    end: float | None = None,
) -> MonoCut:
    """One utterance: `[start, end)` seconds of the first channel, to the end of the recording by default.

    Times are rounded to samples; an end at most `TOLERANCE` beyond the recording is clipped. Without a text
    (None) the cut has no supervision.

    Raises:
        BadUtterance: an empty text, an empty or negative range, or one beyond the recording.
    """
    if text is not None and not text.strip():
        raise BadUtterance("its transcript is empty")
    rate, last = recording.sampling_rate, recording.num_samples
    first_sample = round(start * rate)
    last_sample = last if end is None else round(end * rate)
    if last_sample > last + TOLERANCE * rate:
        raise BadUtterance(f"ends at {end:g} s, but its recording at {last / rate:.2f} s")
    last_sample = min(last_sample, last)
    if not 0 <= first_sample < last_sample:
        raise BadUtterance(f"from {start:g} to {last_sample / rate:g} s there is no audio")
    duration = (last_sample - first_sample) / rate
    cut = MonoCut(id=name, start=first_sample / rate, duration=duration, channel=0, recording=recording)
    if text is not None:
        cut.supervisions.append(
            SupervisionSegment(
                id=name,
                recording_id=recording.id,
                start=0.0,
                duration=duration,
                channel=0,
                text=text.strip(),
                speaker=speaker,
            )
        )
    return cut


def write_split(name: str, data: CheckedCuts, out: Path, prepared: Prepared) -> None:
    """Write `OUT/NAME.jsonl.gz` and, when there are any, `OUT/NAME.rejected.tsv`; enter both in `prepared`.

    The same cuts give the same bytes, so that a manifest's checksum can be a key.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / f"{name}.jsonl.gz"
    partial = out / f".{name}.partial"
    count, seconds = 0, 0.0
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for cut in data.cuts:
            file.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
            count += 1
            seconds += cut.duration
    partial.replace(manifest)  # an interrupted run leaves no half manifest under the final name
    write_rejected(data.rejected, out / f"{name}.rejected.tsv")
    prepared.manifests[name] = manifest
    prepared.utterances[name] = count
    prepared.seconds[name] = seconds
    prepared.rejected += data.rejected


def write_rejected(rejected: Sequence[Rejected], path: Path) -> None:
    """A table of id and reason; a file of an earlier run is removed when there is nothing to list."""
    if not rejected:
        path.unlink(missing_ok=True)
        return
    rows = ["id\treason"] + [
        "\t".join(" ".join(value.split()) for value in (entry.id, entry.reason)) for entry in rejected
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    compressed = path.name.endswith(".gz")
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            yield from enumerate(file, 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(
            "not a gzip file, or cut short", where=path, remedy="Make it again with `retort prepare`"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None


def _parse(line: bytes) -> Any:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise BadUtterance(f"not valid JSON ({str(error).split(': line')[0]})") from None
    if not isinstance(content, dict) or "id" not in content:
        raise BadUtterance("not a cut")
    name = str(content["id"])
    try:
        return deserialize_item(content)
    except Exception as error:  # lhotse has no error of its own: KeyError, TypeError, AssertionError, ...
        raise BadUtterance(f"cut {name} cannot be understood ({type(error).__name__}: {error})") from None


def _check(item: Any, roots: Sequence[Path], texts: bool) -> MonoCut:
    if not texts and isinstance(item, Recording):
        item = item.to_cut()
    if not isinstance(item, MonoCut):
        raise BadUtterance(f"not a MonoCut but a {type(item).__name__}")
    if item.recording is None:
        raise BadUtterance("the cut has no recording")
    if texts:
        if len(item.supervisions) != 1:
            raise BadUtterance(f"the cut has {len(item.supervisions)} supervisions, not one")
        if not (item.supervisions[0].text or "").strip():
            raise BadUtterance("its transcript is empty")
    if not 0 < item.duration <= item.recording.duration - item.start + 1e-3:
        raise BadUtterance(
            f"the cut is [{item.start:g}, {item.end:g}] s of a recording of {item.recording.duration:g} s"
        )
    for source in item.recording.sources:
        if source.type != "file":
            raise BadUtterance(f"its audio is a {source.type}, not a file")
        source.source = str(find_audio(source.source, roots))
    return item
