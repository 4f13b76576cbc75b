"""Cuts: utterances with audio, text and speaker. Creation, checks and writing."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut

from retort.audio.files import MAXIMUM_HOURS, check_length
from retort.common.errors import BadUtterance, UserError, printable
from retort.common.files import write_whole
from retort.corpora.probes import read_header

log = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Seconds by which an utterance may exceed its recording due to rounded times; it is clipped."""


CHANNELS, MIX = "channels", "mix"
"""Custom field, and its value, of cuts that are the mean of all channels of their recording."""


def is_mix(cut: Cut) -> bool:
    """Whether a cut is the mean of all channels of its recording; otherwise it is its `channel`."""
    return (getattr(cut, "custom", None) or {}).get(CHANNELS) == MIX


@dataclass(frozen=True)
class Rejected:
    """A rejected utterance, with the reason."""

    id: str
    """Utterance id, or file and line if there is no id."""
    reason: str


@dataclass
class CheckedCuts:
    cuts: CutSet
    """Each a `MonoCut` named by its utterance id, with an absolute audio path; with one supervision unless
    opened with `texts=False`."""
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class Prepared:
    """Result of a `prepare` function, by split."""

    manifests: dict[str, Path] = field(default_factory=dict)
    utterances: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    """Rejected utterances of all splits, also in `OUT/SPLIT.rejected.tsv`."""


def checked(cuts: Iterable[MonoCut], rejected: list[Rejected], where: str | Path) -> CheckedCuts:
    """Combine cuts and rejected utterances.

    Raises:
        UserError: no cut is left; with the first reason.
    """
    remaining = list(cuts)
    if remaining:
        return CheckedCuts(CutSet.from_cuts(remaining), rejected)
    if not rejected:
        raise UserError("it contains no utterance", where=where, remedy="Choose data that are not empty")
    first = f"{rejected[0].id}: {rejected[0].reason}".rstrip(".")
    raise UserError(
        f"none of {len(rejected)} utterances is usable; the first is {first}",
        where=where,
        remedy="Correct the data or its paths",
    )


def find_audio(path: str, roots: Sequence[Path]) -> Path:
    """Absolute path of an audio file; a relative one is resolved against each root in turn.

    Raises:
        BadUtterance: the file does not exist.
    """
    wanted = Path(path)
    for root in roots:
        if os.path.isfile(root / wanted):
            return Path(os.path.abspath(root / wanted))
    folders = ", ".join(str(root.absolute()) for root in roots)
    tried = "" if wanted.is_absolute() else f" (tried from {folders})"
    raise BadUtterance(f"no audio file {path}{tried}")


def open_recording(name: str, path: Path, maximum_hours: float = MAXIMUM_HOURS) -> Recording:
    """The manifest entry of a file with its actual rate and length; a truncated file is logged.

    Raises:
        BadUtterance: the file cannot be read as audio, is empty, or is longer than `maximum_hours`.
    """
    info, warning = read_header(path)
    check_length(info.samples, info.sampling_rate, maximum_hours, path)
    if warning:
        log.warning("%s: %s", path, warning)
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
    """One utterance: `[start, end)` seconds of the mean of all channels, to the end of the recording by default.

    Times are rounded to samples; an end at most `TOLERANCE` beyond the recording is clipped. Without a text
    (None) the cut has no supervision.

    Raises:
        BadUtterance: the text is empty, or the range is empty, negative or beyond the recording.
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
    if len(recording.channel_ids or []) > 1:
        cut.custom = {CHANNELS: MIX}
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
    """Write `OUT/NAME.jsonl.gz` and, when there are any, `OUT/NAME.rejected.tsv`; add both to `prepared`.

    The output is deterministic, so that a manifest's checksum can be a key.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / f"{name}.jsonl.gz"
    content = io.BytesIO()
    count, seconds = 0, 0.0
    with gzip.GzipFile("", "wb", fileobj=content, mtime=0) as file:
        for cut in data.cuts:
            file.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
            count += 1
            seconds += cut.duration
    write_whole(manifest, content.getvalue())
    write_rejected(data.rejected, out / f"{name}.rejected.tsv")
    prepared.manifests[name] = manifest
    prepared.utterances[name] = count
    prepared.seconds[name] = seconds
    prepared.rejected += data.rejected


def read_rejected(path: Path) -> list[Rejected]:
    """Read the list of :func:`write_rejected`; empty without a file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[1:]
    fields = [line.partition("\t") for line in lines if line]
    return [Rejected(name, reason) for name, _, reason in fields]


def write_rejected(rejected: Sequence[Rejected], path: Path) -> None:
    """Write a table of id and reason; without rejected utterances, an existing file is removed."""
    if not rejected:
        path.unlink(missing_ok=True)
        return
    rows = ["id\treason"] + [
        "\t".join(printable(" ".join(value.split())) for value in (entry.id, entry.reason))
        for entry in rejected
    ]
    write_whole(path, ("\n".join(rows) + "\n").encode("utf-8", "backslashreplace"))
