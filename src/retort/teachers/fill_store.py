"""Filling a teacher's store, by one process or several; it can be interrupted and resumed at any time."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.common.errors import UserError
from retort.common.files import PARTIAL
from retort.common.progress import CountProgress
from retort.teachers.shards import encode, shard_bytes, write_shard
from retort.teachers.store import StoredTeacher
from retort.teachers.teacher import Teacher, TeacherOutput

SHARD_TEXTS = 4096
SHARD_BYTES = 64 * 2**20
READ_TEXTS = 256
"""Texts passed to the teacher in one call; the teacher sorts them into batches by length."""
WARM_UP, SAMPLE = 8, 64
"""Texts computed before timing starts, and texts that are timed, for the estimate."""
STALE_SECONDS = 600.0
"""A partial file that has not changed for this long was left by a process that died."""



@dataclass(frozen=True)
class Estimate:
    """Estimated cost of filling the store, measured on the first texts.

    Attributes:
        texts: number of missing texts, summed over all processes.
        seconds: time until this process has finished its share.
        bytes: size on disk, summed over all processes.
    """

    texts: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"{self.texts:,} texts to compute, about {_duration(self.seconds)}, {_size(self.bytes)}"


def fill(
    store: StoredTeacher,
    teacher: Teacher,
    texts: Iterable[str],
    *,
    rank: int = 0,
    world: int = 1,
    progress: CountProgress | None = None,
    announce: Callable[[Estimate], None] | None = None,
    shard_texts: int = SHARD_TEXTS,
    shard_limit: int = SHARD_BYTES,
) -> int:
    """Store the teacher's outputs of this process's share of the missing texts.

    Texts are assigned to processes by a hash, so that the shares do not depend on timing; an unfinished share is
    completed by the next call. Independent calls may fill the same store: each starts at another position and checks
    before every shard which texts have been stored meanwhile. A process that is killed loses its current shard.

    Args:
        rank, world: index of this process and number of processes of this call.
        progress: called with the number of texts done and in this process's share.
        announce: called once with the estimate, after the first few texts.
        shard_texts, shard_limit: a shard is written when it reaches this number of texts or bytes.

    Returns:
        Number of texts that this process has stored.

    Raises:
        UserError: the disk has too little space or is full, or a vector does not fit float16.
    """
    store.refresh()
    _clear(store)
    missing = store.missing(texts)
    share = own_share(missing, rank, world)
    total, stored = len(share), 0
    if not share:
        return 0
    first, estimate = _sample(teacher, share, len(missing), store.dim)
    _check_room(store.folder, estimate)
    if announce is not None:
        announce(estimate)

    def report(left: int) -> None:
        if progress is not None:
            progress(total - left, total)

    share = share[len(first) :]
    while first or share:
        shard, share = _gather(teacher, first, share, shard_texts, shard_limit, report)
        write_shard(store.folder, shard, store.key)
        stored, first = stored + len(shard), []
        store.refresh()
        share = store.missing(share)
    report(0)
    return stored


def own_share(texts: Sequence[str], rank: int, world: int) -> list[str]:
    """The texts of one of `world` processes in the order of their hashes, starting at a random position."""
    ranked = sorted((int.from_bytes(hashlib.sha256(encode(text)).digest()[:8]), text) for text in texts)
    share = [text for number, text in ranked if number % world == rank]
    # Not the generators of torch or Python: missing texts must not change the random state of training.
    start = random.SystemRandom().randrange(len(share)) if share else 0
    return share[start:] + share[:start]


def _gather(
    teacher: Teacher,
    first: list[TeacherOutput],
    share: list[str],
    texts: int,
    limit: int,
    report: Callable[[int], None],
) -> tuple[list[TeacherOutput], list[str]]:
    """Compute outputs until a shard is full, and report how many texts are left; return the shard and the rest."""
    outputs = list(first)
    size = sum(map(_bytes, outputs))
    while share and len(outputs) < texts and size < limit:
        count = min(READ_TEXTS, texts - len(outputs))
        fresh = teacher.read(share[:count])
        share = share[count:]
        outputs += fresh
        size += sum(map(_bytes, fresh))
        if share:
            report(len(share))
    return outputs, share


def _sample(
    teacher: Teacher, share: Sequence[str], missing: int, dim: int
) -> tuple[list[TeacherOutput], Estimate]:
    """Compute the first texts and extrapolate; in the order of their hashes they are a random sample."""
    count = min(WARM_UP, len(share) // 2)
    outputs = teacher.read(share[:count])
    started = time.perf_counter()
    timed = teacher.read(share[count : count + SAMPLE])
    seconds = time.perf_counter() - started
    outputs += timed
    left = len(share) - len(outputs)
    size = sum(map(_bytes, outputs)) * missing / len(outputs)
    return outputs, Estimate(missing, seconds / len(timed) * left, round(size))


def _bytes(output: TeacherOutput) -> int:
    rows, dim = output.vectors.shape
    return shard_bytes(1, rows, dim, len(encode(output.text)), output.ids is not None)


def _check_room(folder: Path, estimate: Estimate) -> None:
    free = shutil.disk_usage(folder).free
    if estimate.bytes > free:
        raise UserError(
            f"the store needs another {_size(estimate.bytes)}, but only {_size(free)} are free",
            where=folder,
            remedy="Free space, or set storage: online for this teacher",
        )


def _clear(store: StoredTeacher) -> None:
    """Remove incomplete shards and the partial files of processes that died."""
    for path in store.broken:
        path.unlink(missing_ok=True)
    now = time.time()
    for path in store.folder.glob(f"*{PARTIAL}"):
        try:
            if now - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # its process has just renamed it
            continue
    store.refresh()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
