"""Cost of a depthwise convolution over time, as a share of what torch's `Conv1d` with groups takes.

One core, forward and backward, the two interleaved, medians of process time, at widths and kernels of the recipes.
Exits with 1 if a share in float32 or bfloat16 is above the goal.

    python benchmarks/depthwise.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from results import Measured, add_json, finish
from retort.nn.cpu_kernels import Depthwise

GOAL, ROUNDS = 0.6, 25
SHAPES = {  # batch, frames, dim, kernel
    "conformer": (8, 190, 144, 15),
    "branchformer": (8, 190, 384, 31),
    "zipformer": (8, 380, 128, 31),
    "conformer at AISHELL-1's size": (16, 300, 256, 15),
}


def seconds(run: Callable[[Tensor], Tensor], hidden: Tensor, slope: Tensor, bf16: bool) -> float:
    hidden = hidden.clone().requires_grad_()
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result = run(hidden)
    result.float().backward(slope)
    return time.process_time() - started


def measure(batch: int, frames: int, dim: int, kernel: int, bf16: bool) -> tuple[float, float]:
    """Median seconds of ours and of torch's."""
    generator = torch.Generator().manual_seed(0)
    hidden, slope = (torch.randn(batch, frames, dim, generator=generator) for _ in range(2))
    ours, plain = Depthwise(dim, kernel), nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def grouped(hidden: Tensor) -> Tensor:
        result: Tensor = plain(hidden.transpose(1, 2)).transpose(1, 2)
        return result

    pairs = [tuple(seconds(run, hidden, slope, bf16) for run in (ours, grouped)) for _ in range(ROUNDS + 3)]
    left, right = zip(*pairs[3:])
    return statistics.median(left), statistics.median(right)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json(parser)
    file = parser.parse_args().json
    torch.set_num_threads(1)
    rows = []
    print(f"one core, forward + backward, median of {ROUNDS}")
    for name, shape in SHAPES.items():
        for bf16 in (False, True):
            ours, plain = measure(*shape, bf16)
            kind = "bfloat16" if bf16 else "float32"
            times = f"ours {ours * 1e3:.1f} ms, Conv1d {plain * 1e3:.1f} ms"
            print(f"{name} {shape}, {kind}: {times}, share {ours / plain:.2f}, goal <= {GOAL:g}")
            rows.append(Measured(f"{name}, {kind}: time over Conv1d's", ours / plain, GOAL, True, times))
    return finish(rows, file)


if __name__ == "__main__":
    sys.exit(main())
