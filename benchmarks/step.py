"""Where the time of a training update goes, and its share of the processor's peak in matrix products.

    PYTHONPATH=src python benchmarks/step.py [RECIPE ...] [--seconds S] [--rounds N] [--set a.b=c ...]

A student of the recipe's size with random weights makes updates of batches of random audio and texts, on one thread, in
bfloat16 where the processor has instructions for it. Times are process CPU time. Every function of the student belongs
to a stage (encoder, CIF, losses; the rest is the decoder), and so do the nodes of the backward pass that it created.
`features` is the time in which the recipe's features of the batch are computed from samples: a worker of the data
loader needs less than an update as long as it is below 100 %, and the training never waits.

The floating-point operations of forward and backward pass are counted by torch; the peak is that of a product of two
square matrices in the same precision, measured in the same rounds. The goal is their ratio over the whole update,
without the features. Exit code 1 if a recipe misses it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from retort.common.environment import ALLOCATOR

SETTINGS = {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import retort.students.cif as cif  # noqa: E402
import retort.students.whisper as whisper  # noqa: E402
from distill import System, make_batches  # noqa: E402
from results import Measured, add_json, finish  # noqa: E402
from retort.config.loading import load_recipe  # noqa: E402
from retort.config.schema import Recipe  # noqa: E402
from retort.corpora.features import CutFeatures  # noqa: E402

RECIPES = ("aishell1/cif", "english/cif", "whisper/plain")
GOAL = 0.5
SIDE = 1536
"""Rows and columns of the product that the peak is measured with."""
STAGES = ("encoder", "CIF", "decoder", "losses", "clipping", "optimiser")
PARTS = {
    (cif, "ctc_log_probs"): "losses",
    (cif, "ctc_loss"): "losses",
    (cif, "label_frames"): "losses",
    (cif, "alignment_loss"): "losses",
    (cif, "spacing_loss"): "losses",
    (cif, "hard_loss"): "losses",
    (cif, "integrate_and_fire"): "CIF",
    (cif.WeightEstimator, "forward"): "CIF",
    (cif.CifStudent, "encode_in_layers"): "encoder",
    (whisper.WhisperStudent, "encode_in_layers"): "encoder",
    (whisper.WhisperStudent, "_ctc_loss"): "losses",
    (whisper, "hard_loss"): "losses",
}
"""Functions of the students, by their module or class, with the stage they belong to."""


class Clock:
    """CPU time of stages; one runs at a time."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.stage, self.since = "", time.process_time()
        self._known: set[Any] = set()

    def switch(self, stage: str) -> str:
        """Start a stage; returns the one that ended."""
        now, before = time.process_time(), self.stage
        self.spent[before] += now - self.since
        self.stage, self.since = stage, now
        return before

    def mark(self, value: object, stage: str) -> None:
        """Let the nodes that created the tensors in `value` start a stage in the backward pass, unless they do."""
        if isinstance(value, Tensor) and value.grad_fn is not None and value.grad_fn not in self._known:
            self._known.add(value.grad_fn)
            value.grad_fn.register_prehook(lambda _: self.switch(stage) and None)
        elif isinstance(value, tuple | list):
            for each in value:
                self.mark(each, stage)
        elif isinstance(value, dict):
            self.mark(list(value.values()), stage)
        elif hasattr(value, "__dataclass_fields__"):
            self.mark(list(vars(value).values()), stage)

    def within(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a part of a stage, in both passes."""

        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            outer = self.switch(stage)
            self.mark((args, named), outer)
            result = function(*args, **named)
            self.mark(result, stage)
            self.switch(outer)
            return result

        return timed

    def forget(self) -> None:
        """Drop the nodes of the last pass."""
        self._known.clear()


@contextmanager
def staged(clock: Clock) -> Iterator[None]:
    """Time the functions of :data:`PARTS`."""
    before = {part: getattr(*part) for part in PARTS}
    for (owner, name), stage in PARTS.items():
        setattr(owner, name, clock.within(stage, before[owner, name]))
    try:
        yield
    finally:
        for (owner, name), function in before.items():
            setattr(owner, name, function)


def update(system: System, batch: Any, clock: Clock) -> None:
    """One update, as the training loop makes it."""
    clock.switch("decoder")
    with system.autocast():
        output = system.module(batch, {}, system.step)
        clock.switch("losses")
        loss = output.token_sum / batch.token_lengths.sum()
    loss.backward()
    clock.switch("clipping")
    torch.nn.utils.clip_grad_norm_(system.module.student.parameters(), system.clip)
    clock.switch("optimiser")
    system.optimiser.step()
    system.optimiser.zero_grad(set_to_none=True)
    system.step += 1
    clock.switch("")
    clock.forget()


def operations(system: System, batch: Any) -> int:
    """Floating-point operations of both passes, two for a multiplication with an addition."""
    with FlopCounterMode(display=False) as counter, system.autocast():
        system.module(batch, {}, system.step).token_sum.backward()
    system.optimiser.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def make_features(recipe: Recipe, seconds: float, count: int) -> Callable[[], object]:
    """Computes the features of `count` utterances."""
    rate = recipe.features.sampling_rate
    samples = np.random.default_rng(2).uniform(-0.5, 0.5, (count, round(seconds * rate))).astype(np.float32)
    extract = CutFeatures(recipe.features)
    return lambda: [extract.of_samples(each) for each in samples]


def peak(dtype: torch.dtype) -> Callable[[], float]:
    """Operations a second of a product of two square matrices."""
    left, right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))

    def measure() -> float:
        started = time.process_time()
        torch.mm(left, right)
        return 2 * SIDE**3 / (time.process_time() - started)

    return measure


def run(recipe: Recipe, seconds: float, rounds: int) -> Measured:
    """Measure and print one recipe."""
    batches = make_batches(recipe, seconds, 2)
    system = System(recipe, {})
    clock, product = Clock(), peak(torch.bfloat16 if system.bf16 else torch.float32)
    count = operations(system, batches[0])
    features = make_features(recipe, seconds / len(batches[0].ids), len(batches[0].ids))
    spent: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "features", "update")}
    peaks = []
    with staged(clock):
        for number in range(rounds + 1):
            clock.spent.clear()
            clock.switch("")
            update(system, batches[number % 2], clock)
            started = time.process_time()
            features()
            own = {"features": time.process_time() - started}
            best = max(product() for _ in range(3))
            if number:  # the first one prepares kernels
                peaks.append(best)
                own |= {stage: clock.spent[stage] for stage in STAGES}
                own["update"] = sum(own[stage] for stage in STAGES)
                for stage, value in own.items():
                    spent[stage].append(value)
    medians = {stage: statistics.median(values) for stage, values in spent.items()}
    whole, top = medians["update"], statistics.median(peaks)
    share = count / whole / top
    kind = "bf16" if system.bf16 else "fp32"
    rates = f"{count / whole / 1e9:.0f} GFLOP/s of {top / 1e9:.0f} ({kind})"
    print(f"{recipe.name}: {seconds:g} s of audio, {1000 * whole:.0f} ms, {rates}")
    shares = {stage: medians[stage] / whole for stage in (*STAGES, "features")}
    line = ", ".join(f"{stage} {100 * value:.1f} %" for stage, value in shares.items())
    print(f"  {line}\n  share of the peak {share:.2f}, goal {GOAL}", flush=True)
    return Measured(f"{recipe.name}: share of the peak in matrix products", share, GOAL, False, f"{rates}; {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--seconds", type=float, default=40.0, help="audio in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipes, as in retort train")
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [run(load_recipe(each, given.set), given.seconds, given.rounds) for each in given.recipes]
    return finish(rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
