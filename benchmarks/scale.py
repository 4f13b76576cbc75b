"""Costs of a corpus of millions of utterances in shards: start, memory, drawing and resuming of batches, and units.

    PYTHONPATH=src python benchmarks/scale.py [--cuts 5000000] [--utterances 200] [--data MANIFEST] [--output FILE]

The corpus is made up: one shard of a thousand utterances, repeated by hard links with an index of its own. Each start
is a process of its own on one thread, from its first line to the first batch with features, with its peak memory. Times
are those of the clock, those of the processor in brackets. Exits with 1 if a goal is missed: the first batch within
60 s and 1 GB, and every cut in one segment of an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = time.perf_counter()

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from lhotse import MonoCut  # noqa: E402

from retort.common.checksums import SUMS, sha256  # noqa: E402
from retort.config.loading import load_recipe  # noqa: E402
from retort.config.schema import Recipe  # noqa: E402
from retort.corpora.cuts import CheckedCuts, Prepared, make_cut, open_recording, write_split  # noqa: E402
from retort.corpora.manifest import read_cut  # noqa: E402
from retort.corpora.open_cuts import check_cut, find_data, open_cuts  # noqa: E402
from retort.corpora.shards import INDEX, SHARDS, Shards, shard_files  # noqa: E402
from retort.corpora.waves import load_samples  # noqa: E402
from retort.corpora.write_shards import write_shards  # noqa: E402
from retort.text.tokenizers import CharacterTokenizer  # noqa: E402
from retort.training.batches import UtteranceDataset, epoch_batches, make_sampler  # noqa: E402
from retort.training.sampling import SEGMENT, BucketSampler  # noqa: E402
from retort.training.sharded import ShardedCuts, open_shards  # noqa: E402

MOST_SECONDS, MOST_BYTES, RANKS = 60.0, 1e9, 8
SPEEDS = (0.9, 1.0, 1.1)


def recipe_of(speeds: bool, batch_seconds: float = 60.0) -> Recipe:
    """A recipe with the features and batches that are measured."""
    recipe = load_recipe("aishell1/cif", [])
    recipe.batches.seconds, recipe.batches.workers = batch_seconds, 0
    recipe.augment.speeds = list(SPEEDS) if speeds else [1.0]
    recipe.augment.noise = []
    return recipe


def same_length(lengths: torch.Tensor) -> torch.Tensor:
    """As many encoder frames as feature frames."""
    return lengths


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def make_waves(folder: Path, count: int) -> list[Path]:
    """Files of noise of 16 bit, 2 to 14 s."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(count):
        path = folder / f"{number:06d}.wav"
        wave = 0.05 * draw.standard_normal(int(16000 * draw.uniform(2, 14)))
        soundfile.write(path, wave, 16000, subtype="PCM_16")
        paths.append(path)
    return paths


def repeat(folder: Path, large: Path, cuts: int) -> None:
    """A folder of shards with this number of cuts, all of them links to the first shard of `folder`."""
    large.mkdir()
    records = json.loads((folder / SHARDS).read_text())
    first = records["shards"][0]
    rows = np.load(folder / INDEX)[: first["cuts"]]
    count = -(-cuts // len(rows))
    index = np.tile(rows, count)
    index["shard"] = np.repeat(np.arange(count, dtype=np.int32), len(rows))
    index["name"] = np.arange(len(index), dtype=np.uint64)
    np.save(large / INDEX, index)
    listed = []
    for number in range(count):
        files = {}
        for there, name in zip(shard_files(0), shard_files(number)):
            os.link(folder / there, large / name)
            files[name] = first["files"][there]
        listed.append({"cuts": len(rows), "files": files, "rejected": [], "key": "", "seconds": first["seconds"]})
    (large / SHARDS).write_text(json.dumps({"format": records["format"], "shards": listed}))
    sums = {
        name: {"bytes": (large / name).stat().st_size, "sha256": sha256(large / name)} for name in (SHARDS, INDEX)
    }
    (large / SUMS).write_text(json.dumps({"format": 1, "files": sums}))


class Repeated(Shards):
    """Shards in which the same ids occur again."""

    def _cut(self, number: int, row: np.void) -> MonoCut:
        shard = int(row["shard"])
        line = self._lines(shard)[number - self.shards[shard].rows.start]
        return check_cut(read_cut(line, in_shard=True))


def start(folder: str, speeds: bool, segment: int, skip: int) -> dict[str, Any]:
    """In a fresh process: seconds and memory until the first batch."""
    recipe = recipe_of(speeds)
    rows = open_shards(folder, recipe)
    rows.shards.__class__ = Repeated
    cuts = ShardedCuts([rows], recipe)
    dataset = UtteranceDataset(recipe, CharacterTokenizer(list("▁abc")), same_length, None, shards=cuts)
    sampler = make_sampler(cuts, recipe, 0, 1)
    batch = next(iter(epoch_batches(dataset, sampler, 0, skip, segment)))
    return {
        "cuts": len(cuts),
        "segments": sampler.segments,
        "seconds": time.perf_counter() - START,
        "cpu_seconds": time.process_time(),
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "batch": len(batch.ids),
    }


def in_process(folder: Path, speeds: bool = False, segment: int = 0, skip: int = 0) -> dict[str, Any]:
    """:func:`start` in a process of its own."""
    command = [sys.executable, __file__, "--start", str(folder), str(int(speeds)), str(segment), str(skip)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(folder: Path) -> dict[str, Any]:
    """Batches of one segment by the first of eight ranks, and the cuts of all segments of an epoch."""
    recipe = recipe_of(False)
    cuts = ShardedCuts([open_shards(str(folder), recipe)], recipe)
    sampler = BucketSampler(cuts, recipe, 0, RANKS)
    seen = np.zeros(len(cuts), np.int64)
    for segment in range(sampler.segments):
        sampler.set_epoch(0, segment)
        np.add.at(seen, np.fromiter(sampler._numbers(), np.int64), 1)
    own: list[Any] = []
    clock, cpu = timed(lambda: own.extend(sampler))
    # The batches of the other ranks are drawn as well.
    return {
        "once": bool((seen == 1).all()),
        "batches": len(own) * RANKS,
        "seconds_per_batch": clock / len(own) / RANKS,
        "cpu_seconds_per_batch": cpu / len(own) / RANKS,
    }


def units(folder: Path, paths: list[Path]) -> dict[str, Any]:
    """Seconds and bytes for one utterance, or for one second of audio."""
    found: dict[str, Any] = {}
    opened: list[Any] = []
    found["header"] = timed(lambda: opened.extend(open_recording(path.stem, path) for path in paths))
    cuts = [make_cut(path.stem, each, "a b c", "s") for path, each in zip(paths, opened)]
    audio = sum(cut.duration for cut in cuts)
    write_split("train", CheckedCuts(cuts), folder, Prepared())
    few = max(1, len(cuts) // 10)  # Opus is slow
    for name, some in (("stored", cuts), ("flac", cuts), ("opus", cuts[:few])):
        target = folder / name
        taken = timed(lambda n=name, t=target, c=some: write_shards(c, t, audio=n, shard_cuts=len(cuts)))
        found[f"write_{name}"] = tuple(each * len(cuts) / len(some) for each in taken)
        size = sum(path.stat().st_size for path in target.glob("*.tar"))
        found[f"bytes_{name}"] = size / sum(cut.duration for cut in some)
    shards = Shards(str(folder / "stored"))
    found["manifest"] = timed(lambda: open_cuts(folder / "train.jsonl.gz"))
    found["read_files"] = timed(lambda: [load_samples(cut, 16000) for cut in cuts])
    found["read_shards"] = timed(lambda: [load_samples(shards.open(number), 16000) for number in range(len(cuts))])
    found["texts"] = timed(lambda: list(shards.transcripts(np.arange(len(cuts)))))
    recipe = recipe_of(False)
    extract = UtteranceDataset(recipe, None, same_length, None).features
    waves = [load_samples(cut, 16000) for cut in cuts[:few]]
    heard = sum(len(wave) for wave in waves) / 16000
    taken = timed(lambda: [extract.of_samples(wave) for wave in waves])
    found["features"] = tuple(each * audio / heard for each in taken)
    per = {
        key: [each / len(cuts) for each in value] if isinstance(value, tuple) else value
        for key, value in found.items()
    }
    per["audio_seconds"] = audio / len(cuts)
    per["manifest_bytes"] = _memory_of_cuts(folder / "train.jsonl.gz", len(cuts))
    per["index_bytes"] = Shards(str(folder / "stored")).rows().dtype.itemsize
    return per


def _memory_of_cuts(manifest: Path, count: int) -> float:
    """Bytes of memory for a cut of an opened manifest."""
    import tracemalloc

    tracemalloc.start()
    kept = open_cuts(manifest)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept.cuts) == count
    return size / count


def report(result: dict[str, Any]) -> bool:
    """Print everything; return whether the goals are met."""
    print(f"{result['cpu']}, one thread")
    good = result["draw"]["once"]
    for name, each in result["starts"].items():
        fits = each["seconds"] <= MOST_SECONDS and each["bytes"] <= MOST_BYTES
        good = good and fits
        print(
            f"{name}: {each['cuts']:,} cuts, first batch after {each['seconds']:.1f} s "
            f"({each['cpu_seconds']:.1f} s), {each['bytes'] / 1e6:,.0f} MB; goal {MOST_SECONDS:.0f} s, "
            f"{MOST_BYTES / 1e6:,.0f} MB{'' if fits else ': missed'}"
        )
    draws = result["draw"]
    print(
        f"every cut in one segment: {draws['once']}; {draws['batches']:,} batches of a segment for {RANKS} ranks: "
        f"{draws['seconds_per_batch'] * 1e3:.2f} ms ({draws['cpu_seconds_per_batch'] * 1e3:.2f} ms) for a batch of 60 s"
    )
    for name, value in result["units"].items():
        if isinstance(value, list):
            print(f"{name}: {value[0] * 1e3:.3f} ms ({value[1] * 1e3:.3f} ms) for an utterance")
        else:
            print(f"{name}: {value:,.1f}")
    return bool(good)


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Run everything, or one start."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--start"]:
        folder, speeds, segment, skip = sys.argv[2:]
        print(json.dumps(start(folder, bool(int(speeds)), int(segment), int(skip))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=5_000_000)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--data", help="Manifest of recordings in place of noise.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.data:
            some = list(open_cuts(find_data(options.data)).cuts)[: options.utterances]
            paths = list(dict.fromkeys(Path(cut.recording.sources[0].source) for cut in some))
        else:
            paths = make_waves(root / "waves", options.utterances)
        measured = units(root, paths)
        print("units measured", file=sys.stderr)
        again = [
            make_cut(f"{turn}-{path.stem}", open_recording(path.stem, path), "a b c", "s")
            for turn in range(-(-1000 // len(paths)))
            for path in paths
        ][:1000]
        write_shards(again, root / "thousand")
        large = root / "large"
        repeat(root / "thousand", large, options.cuts)
        print("shards repeated", file=sys.stderr)
        segments = max(1, -(-options.cuts // SEGMENT))
        result: dict[str, Any] = {"cpu": processor(), "units": measured, "starts": {}}
        for name, arguments in {
            "start": {},
            "resumed": {"segment": segments // 2, "skip": 1000},
            "three speeds": {"speeds": True},
        }.items():
            result["starts"][name] = in_process(large, **arguments)
            if options.output:
                options.output.write_text(json.dumps(result, indent=1) + "\n")
        result["draw"] = draw(large)
    good = report(result)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not good:
        print("a goal is missed")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
