"""Reads per second of a teacher's store next to one .npy file an utterance.

    PYTHONPATH=src python benchmarks/store.py [--texts N] [--dim D] [--rounds N]

Both hold the same float16 vectors (6 to 26 a text), both lie in the operating system's cache (each is read through
once before the clock starts), both are read in the same random order, another in every round, in batches of 32
texts as training does. Candidates take turns in every round; times are process CPU time, since the clock of a busy
machine tells of its other work; ratios are of medians.

`mapped` is judged: what training calls, from texts to readings, `StoredTeacher.read` against `np.load`. The store hands
out what is mapped, as a memory map does, and a file must be opened, parsed and copied. `float32` is shown, not judged:
the vectors made float32 in memory of their own, so that every byte is touched, and on the store's side the character
spans made too, which a file of vectors does not have.

The script starts itself again with the allocator set as `retort train` sets it. Exit code 1 if the goal is missed,
or if the two give different numbers.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from retort.common.environment import ALLOCATOR

SETTINGS = {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from results import Measured, add_json, finish  # noqa: E402
from retort.teachers import StoredTeacher, TeacherOutput  # noqa: E402
from retort.teachers.shards import write_shard  # noqa: E402

GOAL = 20.0
BATCH = 32
SHARD = 1024


class Files:
    """One .npy file an utterance, its name looked up by text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, str] = {}

    def add(self, reading: TeacherOutput) -> None:
        self.names[reading.text] = str(self.folder / f"{len(self.names):07d}.npy")
        np.save(self.names[reading.text], reading.vectors.half().numpy())

    def vectors(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.from_numpy(np.load(self.names[text])) for text in texts]

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        return [vectors.float() for vectors in self.vectors(texts)]


def make(count: int, dim: int, folder: Path) -> tuple[StoredTeacher, Files, list[str]]:
    """The same readings in both forms."""
    generator = torch.Generator().manual_seed(0)
    identity = {"model": "benchmark", "dim": dim}
    store = StoredTeacher(folder / "stores", identity)
    files = Files(folder / "files")
    files.folder.mkdir()
    texts, shard = [], []
    for index in range(count):
        pieces = int(torch.randint(4, 25, (1,), generator=generator))
        text = f"{index:07d} " + "x" * (4 * pieces - 8)
        spans = [(4 * piece, 4 * piece + 3) for piece in range(pieces)]
        reading = TeacherOutput(torch.randn(pieces + 2, dim, generator=generator), spans, text)
        files.add(reading)
        texts.append(text)
        shard.append(reading)
        if len(shard) == SHARD or index == count - 1:
            write_shard(store.folder, shard, store.key)
            shard = []
    store.refresh()
    return store, files, texts


def batches(texts: list[str], seed: int) -> list[list[str]]:
    order = random.Random(seed).sample(texts, len(texts))
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def same(store: StoredTeacher, files: Files, texts: list[str]) -> bool:
    """Whether both give the same numbers; also brings all of both into the cache."""
    for batch in batches(texts, 0):
        pairs = zip(store.read(batch), files.vectors(batch))
        if not all(torch.equal(reading.vectors, vectors) for reading, vectors in pairs):
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="A teacher's store beside one .npy file an utterance.")
    parser.add_argument("--texts", type=int, default=8000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    add_json(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store, files, texts = make(arguments.texts, arguments.dim, Path(folder))
        if not same(store, files, texts):
            print("the two give different numbers")
            return 1
        candidates: dict[str, Callable[[Sequence[str]], object]] = {
            "files, mapped": files.vectors,
            "store, mapped": store.read,
            "files, float32": files.read,
            "store, float32": lambda batch: [
                (each.vectors.float(), each.spans) for each in store.read(batch)
            ],
        }
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for round_number in range(arguments.rounds):
            order = batches(texts, round_number + 1)
            for name, candidate in candidates.items():
                started = time.process_time()
                for batch in order:
                    candidate(batch)
                times[name].append(time.process_time() - started)
    rates = {name: len(texts) / statistics.median(each) for name, each in times.items()}
    print(f"{len(texts):,} texts of 6 to 26 x {arguments.dim} float16, batches of {BATCH}, random order")
    report(rates)
    ratio = rates["store, mapped"] / rates["files, mapped"]
    detail = f"{len(texts)} texts of width {arguments.dim}, mapped float16"
    return finish([Measured("texts read a second over .npy files", ratio, GOAL, False, detail)], arguments.json)


def report(rates: dict[str, float]) -> None:
    print(f"{'':>10} {'.npy files':>12} {'store':>12} {'ratio':>7}  goal {GOAL:g} for mapped")
    for kind in ("mapped", "float32"):
        files, store = rates[f"files, {kind}"], rates[f"store, {kind}"]
        print(f"{kind:>10} {files:10,.0f}/s {store:10,.0f}/s {store / files:7.1f}")


if __name__ == "__main__":
    sys.exit(main())
