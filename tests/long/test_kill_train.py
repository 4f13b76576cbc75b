"""`retort train` is killed at random moments, its checkpoints are cut; it ends where the unbroken run ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retort.engine.checkpoints import CheckpointFolder, read_weights
from retort.engine.log import read_metrics

WriteRecipe = Callable[..., Path]
KILLS = int(os.environ.get("RETORT_KILLS", "20"))
STEPS, EVALUATE, LOG = 240, 8, 2
LONGEST = 0.8
"""Seconds of updates, at most, before a kill."""
ANYWHERE = 0.2
"""Share of kills that come at any moment from the start of the process: imports, tokenizer, features."""
TERMINATIONS = 0.25
"""Share of kills that are SIGTERM, which saves first."""
TRUNCATE_EVERY = 4
"""Kills after which the newest checkpoint is cut short."""
TRAINING_STATE = ("objective", "optimizer", "random")
OVERRIDES = [
    f"training.steps={STEPS}",
    f"training.evaluate_steps={EVALUATE}",
    f"training.log_steps={LOG}",
    "training.checkpoint_minutes=0.004",
    "training.checkpoints=3",
    "augment.frequency_masks=2",  # chance is on everywhere: dropout, SpecAugment, shuffled batches
    "augment.time_masks=2",
]


def start(recipe: Path, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """The verb itself, in a process of its own; both its streams go to `output`."""
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(2**30), "COLUMNS": "300"}
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "retort.cli", "train", str(recipe), *OVERRIDES],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait_for_updates(process: subprocess.Popen[bytes], metrics: Path) -> None:
    """Until the process has written metrics of its own, or has ended."""
    before = metrics.stat().st_ino if metrics.exists() else None
    # A resumed run replaces the file by one without the lines that are beyond its checkpoint.
    while process.poll() is None and (not metrics.exists() or metrics.stat().st_ino == before):
        time.sleep(0.002)


def interrupt(process: subprocess.Popen[bytes], metrics: Path, draw: random.Random) -> bool:
    """Send a signal at a random moment; whether it came before the end of the run."""
    if draw.random() < ANYWHERE:
        time.sleep(draw.uniform(0, 8))
    else:
        wait_for_updates(process, metrics)
        time.sleep(draw.uniform(0, LONGEST))
    number = signal.SIGTERM if draw.random() < TERMINATIONS else signal.SIGKILL
    process.send_signal(number)
    code = process.wait(timeout=120)
    if number == signal.SIGTERM and code == 143:  # asked to stop, it saved and reported it
        return True
    return code == -number


def check_folder(folder: Path) -> None:
    """What is called a checkpoint is whole, whatever moment the kill came at."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    steps = checkpoints.steps()
    for step in steps:
        path = checkpoints.path(step)
        read_weights(path / "student.safetensors")
        assert json.loads((path / "state.json").read_text())["step"] == step
    for step in steps[-1:]:
        for name in TRAINING_STATE:
            read_weights(checkpoints.path(step) / f"{name}.safetensors")


def truncate_newest(folder: Path, draw: random.Random) -> str:
    """Cut a file of the newest checkpoint if an older one can be resumed from; its name, or nothing."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    resumable = [
        step
        for step in checkpoints.steps()
        if all((checkpoints.path(step) / f"{name}.safetensors").exists() for name in TRAINING_STATE)
    ]
    if len(resumable) < 2:
        return ""
    path = checkpoints.path(resumable[-1])
    victim = draw.choice(sorted(path.iterdir()))
    os.truncate(victim, draw.randrange(victim.stat().st_size))
    return path.name


def check_end(folder: Path, whole: Path) -> None:
    """The model and the metrics are those of the unbroken run; nothing half done lies about."""
    expected, found = (read_weights(each / "model" / "model.safetensors") for each in (whole, folder))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert lines_of(folder) == lines_of(whole)
    assert not list((folder / "checkpoints").glob("partial-*"))


def lines_of(folder: Path) -> list[dict[str, object]]:
    """Every line of the metrics, warnings too, but the seconds that it took."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.long
def test_kills_of_train(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"random seed {seed}")
    draw = random.Random(seed)
    recipe = write_recipe("tiny")
    whole, output = tmp_path / "whole", tmp_path / "output.txt"
    whole.mkdir()
    assert start(recipe, whole, output).wait(timeout=600) == 0, output.read_text()

    kills, cuts, ends = 0, 0, 0
    while kills < KILLS:
        broken = tmp_path / f"broken-{ends}"
        broken.mkdir()
        folder = broken / "exp" / "tiny"
        while kills < KILLS:
            process = start(recipe, broken, output)
            if not interrupt(process, folder / "metrics.jsonl", draw):
                break  # it ended before the signal came
            kills += 1
            check_folder(folder)
            cuts += kills % TRUNCATE_EVERY == 0 and bool(truncate_newest(folder, draw))
        else:
            process = start(recipe, broken, output)
        assert process.wait(timeout=600) == 0, output.read_text()
        check_end(folder, whole / "exp" / "tiny")
        ends += 1
        print(f"{kills} kills, {cuts} checkpoints cut, {ends} runs ended as the unbroken one", flush=True)
