"""Filling a teacher's store: by one process or by many, stopped and gone on with at any moment."""

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
from retort.teachers.shards import encode, shard_bytes, write_shard
from retort.teachers.store import StoredTeacher
from retort.teachers.teacher import Reading, Teacher

SHARD_TEXTS = 4096
SHARD_BYTES = 64 * 2**20
READ_TEXTS = 256
"""Handed to the teacher at once; it makes batches of like length of them."""
WARM_UP, SAMPLE = 8, 64
"""Texts read before the clock starts, and texts that are timed, for the estimate."""
STALE_SECONDS = 600.0
"""A half-written file that nobody touched for so long was left by a process that died."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Estimate:
    """What filling will take, from the first texts.

    Attributes:
        texts: that are missing, the shares of all processes together.
        seconds: until this process has read its own share.
        bytes: on disk, of all processes together.
    """

    texts: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"{self.texts:,} texts to read, about {_duration(self.seconds)}, {_size(self.bytes)}"


def fill(
    store: StoredTeacher,
    teacher: Teacher,
    texts: Iterable[str],
    *,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
    announce: Callable[[Estimate], None] | None = None,
    shard_texts: int = SHARD_TEXTS,
    shard_limit: int = SHARD_BYTES,
) -> int:
    """Let `teacher` read those of `texts` that the store lacks and that are this process's share.

    A text belongs to the process that a hash of it names, so the shares do not depend on who looked when, and a
    share that was left undone is done by the next call. Processes that know nothing of each other may fill one
    store: each begins elsewhere and looks, before each shard, at what the others have stored. A process that
    is killed loses the shard it was at.

    Args:
        rank, world: this process among those of one call.
        progress: called with texts done and texts in this process's share.
        announce: called once, before all but the first few texts are read.
        shard_texts, shard_limit: a shard is written when it has so many texts or bytes.

    Returns:
        Texts that this process has stored.

    Raises:
        UserError: the disk has too little room or is full, or a vector does not fit float16.
    """
    store.refresh()
    _clear(store)
    everyone = store.missing(texts)
    share = own_share(everyone, rank, world)
    total, stored = len(share), 0
    if not share:
        return 0
    begun, estimate = _sample(teacher, share, len(everyone), store.dim)
    _check_room(store.folder, estimate)
    if announce is not None:
        announce(estimate)
    share = share[len(begun) :]
    while begun or share:
        shard, share = _gather(teacher, begun, share, shard_texts, shard_limit)
        write_shard(store.folder, shard, store.key)
        stored, begun = stored + len(shard), []
        store.refresh()
        share = store.missing(share)
        if progress is not None:
            progress(total - len(share), total)
    return stored


def own_share(texts: Sequence[str], rank: int, world: int) -> list[str]:
    """The texts of one of `world` processes, in the order of their hash from a place drawn at random."""
    ranked = sorted((int.from_bytes(hashlib.sha256(encode(text)).digest()[:8]), text) for text in texts)
    share = [text for number, text in ranked if number % world == rank]
    # Not from torch's or Python's own generator: whether texts were missing must not change the student.
    start = random.SystemRandom().randrange(len(share)) if share else 0
    return share[start:] + share[:start]


def _gather(
    teacher: Teacher, begun: list[Reading], share: list[str], texts: int, limit: int
) -> tuple[list[Reading], list[str]]:
    """Read on until a shard is full; the shard, and what is left of the share."""
    readings = list(begun)
    size = sum(map(_bytes, readings))
    while share and len(readings) < texts and size < limit:
        count = min(READ_TEXTS, texts - len(readings))
        fresh = teacher.read(share[:count])
        share = share[count:]
        readings += fresh
        size += sum(map(_bytes, fresh))
    return readings, share


def _sample(
    teacher: Teacher, share: Sequence[str], everyone: int, dim: int
) -> tuple[list[Reading], Estimate]:
    """Read the first texts and reckon from them; in the order of a hash they are a fair sample."""
    count = min(WARM_UP, len(share) // 2)
    readings = teacher.read(share[:count])
    started = time.perf_counter()
    timed = teacher.read(share[count : count + SAMPLE])
    seconds = time.perf_counter() - started
    readings += timed
    left = len(share) - len(readings)
    size = sum(map(_bytes, readings)) * everyone / len(readings)
    return readings, Estimate(everyone, seconds / len(timed) * left, round(size))


def _bytes(reading: Reading) -> int:
    rows, dim = reading.vectors.shape
    return shard_bytes(1, rows, dim, len(encode(reading.text)), reading.ids is not None)


def _check_room(folder: Path, estimate: Estimate) -> None:
    free = shutil.disk_usage(folder).free
    if estimate.bytes > free:
        raise UserError(
            f"the store needs {_size(estimate.bytes)} more, {_size(free)} are free",
            where=folder,
            remedy="Free space, or set storage: online for this teacher",
        )


def _clear(store: StoredTeacher) -> None:
    """Take away shards that are not whole, and what dead processes had begun."""
    for path in store.broken:
        path.unlink(missing_ok=True)
    now = time.time()
    for path in store.folder.glob(f"*{PARTIAL}"):
        try:
            if now - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:  # its process has just finished it
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
