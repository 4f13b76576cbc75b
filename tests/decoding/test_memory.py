"""Memory of `transcribe` does not grow with the length of a recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from retort.decoding.recogniser import Recogniser

RATE = 8000
SCRIPT = """
import resource, sys, torch, retort
torch.set_num_threads(1)
retort.load(sys.argv[1]).transcribe(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_memory(model: Path, audio: Path) -> int:
    """MiB of a process that transcribes a file."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, audio], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.long
def test_two_hours_take_the_memory_of_ten_minutes(recogniser: Recogniser, tmp_path: Path) -> None:
    recogniser.save(tmp_path / "model")
    times = np.arange(60 * RATE) / RATE
    talk = 0.2 * np.sin(2 * np.pi * 300 * times) * (np.sin(2 * np.pi * 3 * times) > -0.3) * (times % 10 < 7)
    minute = (talk + 1e-3 * np.random.default_rng(0).standard_normal(len(times))).astype(np.float32)
    peaks = {}
    for minutes in (10, 120):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(minute)
        peaks[minutes] = peak_memory(tmp_path / "model", path)
    assert peaks[120] < peaks[10] + 60
