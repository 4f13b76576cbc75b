"""Damaged files of every kind: a result or a `UserError`, never another exception, a crash or no end.

A few of them in every `make test`; `make fuzz` takes RETORT_FUZZ_ROUNDS rounds (200) of RETORT_FUZZ_SEED (drawn if it is
not set), and prints what found something: the same seed and kind make the same files again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).with_name("run.py")
KINDS = ("audio", "manifests", "models", "checkpoints", "recipes")
Findings = dict[str, list[dict[str, Any]]]


def fuzz(folder: Path, seed: int, rounds: int, *kinds: str) -> Findings:
    """Findings by kind of file."""
    done = subprocess.run(
        [sys.executable, str(RUN), str(folder), str(seed), str(rounds), *kinds],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    findings: Findings = {kind: [] for kind in kinds}
    for line in map(json.loads, filter(None, done.stdout.splitlines())):
        if "case" in line:
            findings[line["case"].split()[0]].append(line)
    if done.returncode:
        case = (folder / "case").read_text() if (folder / "case").exists() else f"{kinds[0]} setup"
        last = done.stderr.strip().splitlines()[-1:]
        findings[case.split()[0]].append({"case": case, "error": f"exit code {done.returncode}: {last}"})
    return findings


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return fuzz(tmp_path_factory.mktemp("fuzz"), 1, 3, *KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files(few: Findings, kind: str) -> None:
    assert few[kind] == []


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(tmp_path: Path, kind: str) -> None:
    seed = int(os.environ.get("RETORT_FUZZ_SEED") or random.SystemRandom().randrange(10**6))
    found = fuzz(tmp_path, seed, int(os.environ.get("RETORT_FUZZ_ROUNDS", "200")), kind)
    assert found[kind] == []
