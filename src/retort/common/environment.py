"""Environment variables that must be set before computation."""

from __future__ import annotations

import os
import sys

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
"""Prevents glibc from returning memory between steps, which takes a third of a step on a CPU."""

REPEATABLE = {"MKL_CBWR": "AUTO,STRICT"}
"""Without it, MKL's products depend on memory alignment, and trainings are not reproducible."""


def tune_environment() -> None:
    """Make matrix products reproducible, and restart this process with allocator settings; user settings are kept.

    The allocator is tuned only on Linux.
    """
    for name, value in REPEATABLE.items():
        os.environ.setdefault(name, value)  # read at MKL's first product
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update(ALLOCATOR)
    # glibc reads these when a process starts, so that the process must be restarted.
    os.execv(sys.executable, [sys.executable, "-m", "retort.cli", *sys.argv[1:]])
