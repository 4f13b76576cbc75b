"""`torchrun ... -m retort.cli train` in two processes: stopped, killed, gone on with, and ended by one alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from retort.engine.checkpoints import CheckpointFolder, read_weights
from retort.engine.log import read_metrics

WriteRecipe = Callable[..., Path]
PATIENCE = 300
"""Seconds."""


class Run:
    """One experiment, trained by one command after another."""

    def __init__(self, recipe: Path, root: Path, *overrides: str) -> None:
        self.command = ["-m", "retort.cli", "train", str(recipe), "training.device=cpu", *overrides]
        self.root, self.folder = root, root / "exp" / "tiny"
        self.output = root / "output.txt"
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints")

    def start(self, processes: int) -> subprocess.Popen[bytes]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(2**30), "COLUMNS": "300"}
        with self.output.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, *(torchrun if processes > 1 else []), *self.command],
                cwd=self.root,
                env={**os.environ, **settings},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> None:
        """Until an update after `step` is logged."""
        path, until = self.folder / "metrics.jsonl", time.monotonic() + PATIENCE
        while not path.exists() or max((line["step"] for line in read_metrics(path)), default=0) <= step:
            assert process.poll() is None, self.output.read_text()
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.02)

    def messages(self) -> list[str]:
        """The lines that say why the command ended."""
        return [line for line in self.output.read_text().splitlines() if line.startswith("retort: ")]


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_killed_and_ended_by_one(write_recipe: WriteRecipe, tmp_path: Path, precision: str) -> None:
    overrides = "training.steps=60", "training.evaluate_steps=5", f"training.precision={precision}"
    run = Run(write_recipe(), tmp_path, *overrides)

    process = run.start(2)
    run.wait_for_step(process, 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) != 0
    (stop,) = run.checkpoints.steps()[-1:]
    assert run.messages() == [f"retort: stopped after step {stop}; run the same command to resume"]

    process = run.start(2)
    run.wait_for_step(process, stop + 6)
    ranks = {each.environ()["RANK"]: each for each in psutil.Process(process.pid).children()}
    ranks["1"].kill()
    assert process.wait(PATIENCE) != 0
    (line,) = run.messages()
    assert line.startswith("retort: process 0 of 2 has lost another one")
    assert line.endswith("Run the same command again to resume from the last checkpoint")
    before = run.checkpoints.steps()
    assert before[-1] > stop
    for part in ("student", "objective", "optimizer", "random"):
        read_weights(run.checkpoints.path(before[-1]) / f"{part}.safetensors")

    process = run.start(2)
    run.wait_for_step(process, before[-1] + 2)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)

    assert run.start(1).wait(PATIENCE) == 0, run.output.read_text()
    assert run.messages() == []
    scores = [line["step"] for line in read_metrics(run.folder / "metrics.jsonl") if "validation.cer" in line]
    assert scores == list(range(5, 61, 5))
    assert len(list((run.folder / "evaluation").glob("*/score.json"))) == 1


@pytest.mark.long
def test_a_mistake_is_reported_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "none.yaml", tmp_path)
    assert run.start(2).wait(PATIENCE) == 1
    (line,) = run.messages()
    assert "none.yaml" in line
