"""Cost of the contrastive loss, as a multiple of two plain N x N x D products forward and backward.

One core, forward and backward, the two interleaved, medians of process time. A plain product is
`student @ teacher.T` with a gradient for the student, as the loss has it. Exits with 1 if the multiple for
D = 768 is above the goal.

    python benchmarks/contrastive.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from results import Measured, add_json, finish
from retort.distill import contrastive_loss

POSITIONS, NEGATIVES, ROUNDS = 960, 700, 30
GOAL, GOAL_DIM = 4.0, 768


def seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(dim: int, with_sources: bool) -> tuple[float, float]:
    """Median seconds of the loss and of the two products."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(POSITIONS, dim, generator=generator, requires_grad=True)
    teacher = torch.randn(POSITIONS, dim, generator=generator)
    upstream = torch.randn(POSITIONS, POSITIONS, generator=generator)
    start = torch.arange(POSITIONS) * 2 // 3
    sources = torch.stack([start, start + 1], 1) if with_sources else None

    def loss() -> None:
        student.grad = None
        contrastive_loss(student, teacher, negatives=NEGATIVES, sources=sources, reduction="sum").backward()

    def products() -> None:
        for _ in range(2):
            student.grad = None
            (student @ teacher.T).backward(upstream)

    for run in (loss, products):
        for _ in range(3):
            run()
    pairs = [(seconds(loss), seconds(products)) for _ in range(ROUNDS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json(parser)
    file = parser.parse_args().json
    torch.set_num_threads(1)
    rows = []
    print(f"N = {POSITIONS}, K = {NEGATIVES}, one core, forward + backward, median of {ROUNDS}")
    for dim in (GOAL_DIM, 256):
        for with_sources in (False, True):
            ours, floor = measure(dim, with_sources)
            ratio = ours / floor
            goal = f", goal <= {GOAL:g}" if dim == GOAL_DIM else ""
            title = f"D = {dim}" + (" with sources" if with_sources else "")
            times = f"loss {ours * 1e3:.1f} ms, two products {floor * 1e3:.1f} ms"
            print(f"{title}: {times}, ratio {ratio:.2f}{goal}")
            rows.append(Measured(f"{title}: time over two products", ratio, GOAL if goal else None, True, times))
    return finish(rows, file)


if __name__ == "__main__":
    sys.exit(main())
