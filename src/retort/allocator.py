"""The memory allocator of a training process."""

from __future__ import annotations

import os
import sys

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
"""Keeps glibc from giving memory back between steps, which costs a third of a step on a CPU."""


def tune_allocator() -> None:
    """Replace this process by itself with the allocator tuned; on Linux, and unless the user set any of it."""
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update(ALLOCATOR)
    # glibc reads these when a process starts, so the process is replaced by itself.
    os.execv(sys.executable, [sys.executable, "-m", "retort.cli", *sys.argv[1:]])
