"""`retort sweep` is killed or terminated while two runs train; the same command finishes both, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retort.engine.log import read_metrics
from retort.evaluation.results import read_results

WriteRecipe = Callable[..., Path]

TEXT = """
name: study
seeds: [1, 2]
common: [training.steps=400, training.evaluate_steps=100]
systems: {{plain: {{recipe: {recipe}}}}}
"""


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(2**30), "COLUMNS": "300"}
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "retort.cli", "sweep", "study.yaml", "--jobs", "2"],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def process_of(experiment: str, folder: Path) -> int:
    """The process that trains this experiment in this folder; 0 if there is none."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            if f"name={experiment}" in words and (path / "cwd").resolve() == folder:
                return int(path.name)
        except OSError:  # it has just ended
            continue
    return 0


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_finishes_what_was_stopped(
    write_recipe: WriteRecipe, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "study.yaml").write_text(TEXT.format(recipe=write_recipe()))
    metrics = [tmp_path / f"exp/study/plain-{seed}/metrics.jsonl" for seed in (1, 2)]
    process = start(tmp_path, tmp_path / "first.txt")
    until = time.monotonic() + 120
    while not all(path.exists() for path in metrics):  # both at once, or the second would never come
        assert process.poll() is None, (tmp_path / "first.txt").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    if number == signal.SIGKILL:  # of its two trainings one dies as well, the other one goes on alone
        os.kill(process_of("study/plain-1", tmp_path), signal.SIGKILL)
        assert process_of("study/plain-2", tmp_path)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "each training writes a checkpoint" in (tmp_path / "first.txt").read_text()
        assert all(list(path.parent.glob("checkpoints/step-*")) for path in metrics)
    assert not (tmp_path / "results/study.json").exists()
    again = start(tmp_path, tmp_path / "again.txt")
    assert again.wait(240) == 0, (tmp_path / "again.txt").read_text()
    for path in metrics:
        steps = [line["step"] for line in read_metrics(path) if "loss" in line]
        assert steps == list(range(2, 401, 2))
    assert [row["seed"] for row in read_results(tmp_path / "results/study.json")] in ([1, 2], [2, 1])
    (content,) = json.loads((tmp_path / "exp/study/table.json").read_text())
    assert content["systems"][0]["unfinished"] == {}
