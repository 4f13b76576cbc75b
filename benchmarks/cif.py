"""The CIF step next to the memory it must move: time and peak memory, forward + backward, one thread.

    PYTHONPATH=src python benchmarks/cif.py [--large] [--rounds N]

The floor of a shape is the time to move the bytes that any implementation moves (forward: read `hidden`, write
the tokens; backward: read `hidden` and the tokens' gradient, write the gradient of `hidden`) at the speed at
which this machine copies 128 MiB in memory, measured in the same rounds. Small shapes live in the cache and
beat memory, so `hot` is the same ratio with the speed of copying a tensor of `hidden`'s own size; it is shown, not
judged. `kernels` are the three library calls of the step alone, with the intervals given: what is above them are the
about 180 small calls that compute the intervals. All candidates take turns in every round, times are process CPU time,
ratios are of medians. Memory is the peak above the inputs, the tokens' gradient included, as a multiple of `hidden`.

The script starts itself again with the allocator told to keep its pages; it exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
if any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from results import Measured, add_json, finish  # noqa: E402
from retort.nn.cif import integrate_and_fire  # noqa: E402

SHAPES = ((16, 100, 256), (16, 400, 256), (32, 800, 256), (1, 6000, 256))
LARGE = (64, 1500, 512)
LOOP_FRAMES = 400
"""The sequential loop is quadratic in the frames and is left out above this."""
FAR_BYTES = 128 * 2**20
GOAL_FRAMES = 400
GOAL_TIME = 2.0
GOAL_MEMORY = 1.6

Step = Callable[[], object]


class Case(NamedTuple):
    hidden: Tensor  # (B, T, D)
    alphas: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    targets: Tensor  # (B,)
    grad: Tensor  # (B, U, D)
    matrix: Tensor  # (B, U, T): the weights as a dense matrix, given free to bmm


def make_case(batch: int, frames: int, dim: int) -> Case:
    generator = torch.Generator().manual_seed(0)
    units = frames // 5
    hidden = torch.randn(batch, frames, dim, generator=generator)
    alphas = torch.rand(batch, frames, generator=generator)
    lengths = torch.full((batch,), frames)
    targets = torch.full((batch,), units)
    grad = torch.randn(batch, units, dim, generator=generator)
    ends = (alphas.double().cumsum(1) / alphas.double().sum(1, keepdim=True) * units)[:, None]
    done = (ends - torch.arange(units)[:, None]).clamp(0.0, 1.0)
    matrix = done.diff(dim=2, prepend=done.new_zeros(batch, units, 1)).float()
    return Case(
        hidden.requires_grad_(), alphas.requires_grad_(), lengths, targets, grad, matrix.requires_grad_()
    )


def retort_step(case: Case) -> Step:
    def step() -> object:
        fired = integrate_and_fire(case.hidden, case.alphas, case.lengths, case.targets)
        return fired.embeddings, torch.autograd.grad(fired.embeddings, (case.hidden, case.alphas), case.grad)

    return step


def training_step(case: Case) -> Step:
    """As in training: the tokens' gradient is made in the step and counts as its memory."""

    def step() -> object:
        fired = integrate_and_fire(case.hidden, case.alphas, case.lengths, case.targets)
        grad = case.grad.clone()
        return fired.embeddings, torch.autograd.grad(fired.embeddings, (case.hidden, case.alphas), grad)

    return step


def bmm_step(case: Case) -> Step:
    def step() -> object:
        embeddings = torch.bmm(case.matrix, case.hidden)
        return embeddings, torch.autograd.grad(embeddings, (case.hidden, case.matrix), case.grad)

    return step


def loop_step(case: Case) -> Step:
    """Frame after frame, one fire a frame, as the first implementations of CIF were written."""
    batch, frames, dim = case.hidden.shape

    def step() -> object:
        scaled = case.alphas * (case.targets / case.alphas.sum(1))[:, None]
        weight = torch.zeros(batch)
        state = torch.zeros(batch, dim)
        emitted, fires = [], []
        for index in range(frames):
            alpha, frame = scaled[:, index], case.hidden[:, index]
            fire = weight + alpha >= 0.999
            taken = torch.where(fire, 1.0 - weight, alpha)
            state = state + taken[:, None] * frame
            emitted.append(state)
            fires.append(fire)
            state = torch.where(fire[:, None], (alpha - taken)[:, None] * frame, state)
            weight = torch.where(fire, alpha - taken, weight + alpha)
        embeddings = torch.stack(emitted, 1)[torch.stack(fires, 1)]
        grad = case.grad.flatten(0, 1)[: len(embeddings)]
        return embeddings, torch.autograd.grad(embeddings, (case.hidden, case.alphas), grad)

    return step


def kernel_step(case: Case) -> Step:
    """The three library calls that the step consists of, with intervals given free."""
    batch, frames, _ = case.hidden.shape
    units = case.grad.shape[1]
    ends = torch.cat((torch.arange(1, frames + 1) * units / frames, torch.arange(1.0, units + 1)))
    order = ends.argsort(stable=True)
    is_frame = (order < frames).int()
    frame_of, token_of = is_frame.cumsum(0) - is_frame, (1 - is_frame).cumsum(0) - (1 - is_frame)
    row = torch.arange(batch)[:, None]
    indices, tokens = (
        (each.clamp_max(most - 1) + row * most).flatten().int()
        for each, most in ((frame_of, frames), (token_of, units))
    )
    token_starts, frame_starts = (
        (torch.searchsorted(each, torch.arange(most)) + row * (frames + units)).flatten().int()
        for each, most in ((token_of, units), (frame_of, frames))
    )
    weights = torch.rand(indices.shape)
    hidden, grad = case.hidden.detach().flatten(0, 1), case.grad.flatten(0, 1)

    def step() -> object:
        forward = torch.embedding_bag(hidden, indices, token_starts, False, 0, False, weights)[0]
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, hidden, indices, token_starts, tokens, 0
        )
        return forward, dots, torch.embedding_bag(grad, tokens, frame_starts, False, 0, False, weights)[0]

    return step


def copy_step(source: Tensor) -> Step:
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def cpu_seconds(step: Step, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - start) / calls


def measure_times(case: Case, rounds: int, with_loop: bool) -> dict[str, float]:
    """Median CPU seconds of a call of each candidate, and of copying `hidden` in memory and in the cache."""
    steps = {
        "retort": retort_step(case),
        "kernels": kernel_step(case),
        "bmm": bmm_step(case),
        "hot copy": copy_step(case.hidden.detach()),
    }
    calls = max(1, round(4e6 / case.hidden.numel()))
    far_copy = copy_step(torch.ones(FAR_BYTES // 4))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    samples["copy"] = []
    for step in (*steps.values(), far_copy):
        cpu_seconds(step, 3)
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name].append(cpu_seconds(step, calls))
        samples["copy"].append(cpu_seconds(far_copy, 1) * case.hidden.nbytes / FAR_BYTES)
    if with_loop:
        samples["loop"] = [cpu_seconds(loop_step(case), 1) for _ in range(3)]
    return {name: statistics.median(values) for name, values in samples.items()}


def floor_seconds(case: Case, copy_seconds: float) -> float:
    moved = 3 * case.hidden.nbytes + 2 * case.grad.nbytes
    return copy_seconds * moved / (2 * case.hidden.nbytes)


def peak_bytes(step: Step) -> int:
    """The most that was allocated at once during one call, above what was there before."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = step()
    del kept
    raw = profiler.profiler
    assert raw is not None
    changes = [event for event in raw.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def run_shape(shape: tuple[int, int, int], rounds: int) -> list[Measured]:
    """Measure and print one row."""
    case = make_case(*shape)
    times = measure_times(case, rounds, shape[1] <= LOOP_FRAMES)
    floor = floor_seconds(case, times["copy"])
    hot = times["retort"] / floor_seconds(case, times["hot copy"])
    memory = peak_bytes(training_step(case)) / case.hidden.nbytes
    ratio = times["retort"] / floor
    loop = f"{times['loop'] / floor:8.0f}" if "loop" in times else f"{'-':>8}"
    judged = shape[1] >= GOAL_FRAMES
    met = not judged or (ratio <= GOAL_TIME and memory <= GOAL_MEMORY)
    verdict = ("met" if met else "MISSED") if judged else "-"
    name = "x".join(str(size) for size in shape)
    print(
        f"{name:>12} {floor * 1e3:9.2f} {ratio:8.2f} {hot:8.2f} {times['kernels'] / floor:8.2f}"
        f" {times['bmm'] / floor:8.1f} {loop} {memory:8.2f} {verdict:>7}",
        flush=True,
    )
    detail = f"the three library calls alone {times['kernels'] / floor:.1f}, floor {1e3 * floor:.2f} ms"
    goals = (GOAL_TIME, GOAL_MEMORY) if judged else (None, None)
    return [
        Measured(f"{name}: time over the memory floor", ratio, goals[0], True, detail),
        Measured(f"{name}: peak memory over hidden", memory, goals[1], True),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="The CIF step over the memory floor, forward + backward.")
    parser.add_argument("--large", action="store_true", help="also 64x1500x512 (about 1.5 GB)")
    parser.add_argument("--rounds", type=int, default=40)
    add_json(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bar = f"T >= {GOAL_FRAMES}: at most {GOAL_TIME} x the floor, {GOAL_MEMORY} x hidden"
    print(
        f"forward + backward, one thread, multiples of the floor; memory, multiples of hidden; goal for {bar}"
    )
    columns = ("retort", "hot", "kernels", "bmm", "loop", "memory")
    print(f"{'shape':>12} {'floor ms':>9} {' '.join(f'{each:>8}' for each in columns)} {'goal':>7}")
    shapes = (*SHAPES, LARGE) if arguments.large else SHAPES
    rows = [row for shape in shapes for row in run_shape(shape, arguments.rounds)]
    return finish(rows, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
