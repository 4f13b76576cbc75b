"""Sound files that say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def write_wave(path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> Path:
    """White noise in a file of the kind its ending says; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, wave, rate)
    return path
