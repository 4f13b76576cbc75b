"""Real-time factor and start-up time of a model in torch and of its exports in ONNX Runtime, on one thread.

    python benchmarks/export.py models/english english-onnx [english-int8 ...] --audio a.flac b.flac

Times are CPU times, so that other processes do not count. The goal is that exports are
twice as fast as the first. Export with `retort export EXP OUT --for onnx [--int8]`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

import retort
from results import Measured, add_json, finish
from retort.audio.files import open_audio

START = "import time, retort; retort.load({!r}); print(time.process_time())"


GOAL = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--audio", nargs="+", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reference: list[str] = []
    slowest = 0.0
    rows: list[Measured] = []
    for folder in given.models:
        asr = retort.load(folder)
        seconds = sum(sum(map(len, open_audio(each, 16000).blocks())) / 16000 for each in given.audio)
        asr.transcribe(given.audio[0])
        best = float("inf")
        for _ in range(given.repeats):
            started = time.process_time()
            texts = [asr.transcribe(each).text for each in given.audio]
            best = min(best, time.process_time() - started)
        reference, slowest = reference or texts, slowest or best
        same = sum(map(str.__eq__, texts, reference))
        start = subprocess.run([sys.executable, "-c", START.format(folder)], capture_output=True, text=True, check=True)
        times = f"real-time factor {best / seconds:.4f}, start-up {float(start.stdout):.2f} s"
        name = Path(folder).name
        if rows:
            rows.append(Measured(f"{name}: times as fast as torch", slowest / best, GOAL, False, times))
        else:
            rows.append(Measured(f"{name} in torch: real-time factor", best / seconds, detail=times))
        print(
            f"{folder:30} real-time factor {best / seconds:.4f} ({slowest / best:.1f} times the first), "
            f"start-up {float(start.stdout):.2f} s, {same} of {len(texts)} texts equal those of the first"
        )
    return finish(rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
