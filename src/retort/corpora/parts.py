"""Preparation of a corpus by several processes or jobs, with the result of one process.

The work that takes long is reading the headers of all audio files. Every part reads its share and records it; when all
parts are there, the manifests are written as usual, from the records.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retort.common.checksums import sha256
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.common.locks import one_at_a_time
from retort.common.workers import workers
from retort.corpora import PREPARERS
from retort.corpora.cuts import Prepared, read_rejected
from retort.corpora.probes import Probes, read_probes, using

RECORD = "prepared.json"
"""What a preparation in parts has written, for the parts that are run again."""
_FOLDER = "parts"


@dataclass(frozen=True)
class Work:
    """A preparation: the arguments of a function in :data:`retort.corpora.PREPARERS`."""

    kind: str
    source: str
    out: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of the work, without its output folder."""
        content = {**asdict(self), "out": "", "source": str(Path(self.source).absolute())}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def prepare_in_parts(work: Work, part: tuple[int, int] = (1, 1), processes: int = 1) -> Prepared | None:
    """Prepare one part of a corpus; the call that finds all parts complete writes the manifests.

    Parts that have been run are not repeated, an interrupted one continues. Jobs of an array must see the same paths.

    Args:
        part: number of this part, counted from 1, and number of parts.
        processes: number of processes that divide this part among them.

    Returns:
        What was prepared, by this call or an earlier one; None if other parts are missing.

    Raises:
        UserError: as the function of the corpus.
    """
    out, total = Path(work.out), part[1] * processes
    if total == 1:
        return PREPARERS[work.kind](Path(work.source), out, **work.options)
    if part[1] > 1 and (earlier := _earlier(work)) is not None:
        return earlier
    folder = out / _FOLDER / f"{work.key}-{total}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(work, str(folder), (part[0] - 1) * processes + number, total) for number in range(1, processes + 1)]
    with workers(processes, "the preparation", "Use fewer --workers") as pool:
        list(pool.map(_probe_part, jobs))
    with one_at_a_time(out / _FOLDER / "lock"):
        if part[1] > 1 and (earlier := _earlier(work)) is not None:
            return earlier
        known: dict[str, dict[str, Any]] = {}
        for number in range(1, total + 1):
            found, done = read_probes(_file(folder, number))
            if not done:
                return None
            known |= found
        with using(Probes(known)):
            prepared = PREPARERS[work.kind](Path(work.source), out, **work.options)
        _record(work, prepared)
    shutil.rmtree(out / _FOLDER, ignore_errors=True)
    return prepared


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl"


def _probe_part(job: tuple[Work, str, int, int]) -> None:
    """Read and record the headers of one part: an ordinary preparation, to which all other files are unusable."""
    work, folder, number, total = job
    path = _file(Path(folder), number)
    known, done = read_probes(path)
    if done:
        return
    with tempfile.TemporaryDirectory() as unused, path.open("a", encoding="utf-8") as record:
        record.write("\n")  # the last line may be incomplete
        probes = Probes(known, number, total, record)
        try:
            with using(probes):
                PREPARERS[work.kind](Path(work.source), Path(unused), **work.options)
        except UserError:
            if not probes.skipped:
                raise
            # nothing usable in this part alone
        record.write(json.dumps({"done": True}) + "\n")


def _record(work: Work, prepared: Prepared) -> None:
    splits = {
        name: {
            "sha256": sha256(path),
            "utterances": prepared.utterances[name],
            "seconds": prepared.seconds[name],
        }
        for name, path in prepared.manifests.items()
    }
    write_whole(Path(work.out) / RECORD, json.dumps({"key": work.key, "splits": splits}, indent=1) + "\n")


def _earlier(work: Work) -> Prepared | None:
    """The result of an earlier call with the same arguments, if its manifests have not changed."""
    out, prepared = Path(work.out), Prepared()
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = read_json(out / RECORD)
        if content["key"] != work.key:
            return None
        for name, each in content["splits"].items():
            path = out / f"{name}.jsonl.gz"
            if sha256(path) != each["sha256"]:
                return None
            prepared.manifests[name] = path
            prepared.utterances[name] = int(each["utterances"])
            prepared.seconds[name] = float(each["seconds"])
            prepared.rejected += read_rejected(out / f"{name}.rejected.tsv")
        return prepared
    return None
