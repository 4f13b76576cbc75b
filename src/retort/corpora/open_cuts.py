"""Opening of manifests, checked line by line, and Kaldi folders."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from lhotse import MonoCut, MultiCut, Recording
from lhotse.utils import fastcopy

from retort.common.errors import BadUtterance, UserError
from retort.common.files import lines_up_to
from retort.corpora.cuts import CHANNELS, MIX, CheckedCuts, Rejected, checked, find_audio, is_mix
from retort.corpora.kaldi import read_kaldi
from retort.corpora.manifest import LONGEST_LINE, read_cut

SHARDS = "shards.json"
"""List of the shards in a folder of shards; see :mod:`retort.corpora.shards`."""
DATA_VARIABLE = "RETORT_DATA"
MOST_REJECTED = 100_000
"""Maximum number of unusable lines of a manifest."""


def find_data(path: str | Path) -> Path:
    """The absolute path of data in a recipe or a command.

    A relative path is resolved against the working directory, then `$RETORT_DATA`, then `./data`, then
    `../shared/data`, a folder that several checkouts of a project share.

    Raises:
        UserError: it does not exist; with the searched paths.
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

    Relative audio paths inside a manifest are resolved against the working directory, the manifest's folder and the
    folder above. Audio files must exist but are not read. With `texts=False` (noise) neither text nor
    supervision is required, and a manifest of recordings is accepted.

    Raises:
        UserError: it does not exist, is not a manifest, or has no usable utterance.
    """
    found = find_data(path)
    if (found / SHARDS).is_file():
        raise UserError(
            "a folder of shards, which only data.train of a recogniser reads",
            where=found,
            remedy="Use the manifest of the same cuts",
        )
    if found.is_dir():
        return read_kaldi(found, texts=texts)
    if not found.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(
            "neither a manifest (*.jsonl, *.jsonl.gz) nor a Kaldi folder",
            where=found,
            remedy="Create one with `retort prepare`",
        )
    cuts: dict[str, MonoCut] = {}
    rejected: list[Rejected] = []
    for number, line in _lines(found):
        if not line.strip():
            continue
        name = f"{found.name}:{number}"
        try:
            item = read_cut(line)
            name = item.id or name
            cut = check_cut(item, texts)
            _find_files(cut.recording, [Path(), found.parent, found.parent.parent])
            if cut.id in cuts:
                raise BadUtterance("its id also occurs on an earlier line")
            cuts[cut.id] = cut
        except BadUtterance as error:
            rejected.append(Rejected(name, f"line {number}: {error}"))
            if len(rejected) > MOST_REJECTED:
                raise UserError(
                    f"more than {MOST_REJECTED:,} lines are not usable; the first is {rejected[0].reason}",
                    where=found,
                    remedy="Choose a manifest of cuts",
                ) from None
    return checked(cuts.values(), rejected, found)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with _open(path) as file:
            yield from enumerate(lines_up_to(LONGEST_LINE, file, path), 1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(
            "not a gzip file, or incomplete", where=path, remedy="Create it again with `retort prepare`"
        ) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def check_cut(item: Any, texts: bool = True) -> MonoCut:
    """A cut of a manifest as a checked `MonoCut`; its files are not looked for.

    Raises:
        BadUtterance: it is another item, or lacks a recording, a transcript or its range of audio.
    """
    if not texts and isinstance(item, Recording):
        item = item.to_cut()
    if isinstance(item, MultiCut):
        item = _as_mix(item)
    if not isinstance(item, MonoCut):
        raise BadUtterance(f"not a MonoCut but a {type(item).__name__}")
    if item.recording is None:
        raise BadUtterance("the cut has no recording")
    known = item.recording.channel_ids or []
    if not is_mix(item) and item.channel not in known:
        has = ", ".join(map(str, known))
        raise BadUtterance(f"the cut is of channel {item.channel}, its recording has {has}")
    if texts:
        if len(item.supervisions) != 1:
            raise BadUtterance(f"the cut has {len(item.supervisions)} supervisions, not one")
        if not (item.supervisions[0].text or "").strip():
            raise BadUtterance("its transcript is empty")
    if not 0 < item.duration <= item.recording.duration - item.start + 1e-3:
        raise BadUtterance(
            f"the cut is [{item.start:g}, {item.end:g}] s of a recording of {item.recording.duration:g} s"
        )
    return item


def _as_mix(cut: MultiCut) -> MonoCut:
    """Convert a cut of all channels of its recording to a MonoCut with our mark.

    Raises:
        BadUtterance: it has only some of them.
    """
    known = [] if cut.recording is None else cut.recording.channel_ids or []
    if set(cut.channel if isinstance(cut.channel, list) else [cut.channel]) != set(known):
        raise BadUtterance(
            f"the cut is of channels {cut.channel} of {known}", remedy="Use one channel (a MonoCut), or all"
        )
    return MonoCut(
        id=cut.id,
        start=cut.start,
        duration=cut.duration,
        channel=known[0],
        recording=cut.recording,
        supervisions=[fastcopy(each, channel=known[0]) for each in cut.supervisions],
        custom={**(cut.custom or {}), CHANNELS: MIX},
    )


def _find_files(recording: Recording, roots: Sequence[Path]) -> None:
    """Make the paths of a recording absolute, including those of impulse responses in its transforms."""
    for source in recording.sources:
        source.source = str(find_audio(str(source.source), roots))
    for transform in recording.transforms or []:
        assert isinstance(transform, dict)
        response = transform["kwargs"].get("rir", {})
        for source in response.get("recording", response).get("sources", []):
            source["source"] = str(find_audio(source["source"], roots))
