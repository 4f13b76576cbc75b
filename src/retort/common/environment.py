"""What the environment of a process must say before it computes."""

from __future__ import annotations

import os
import sys

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
"""Keeps glibc from giving memory back between steps, which costs a third of a step on a CPU."""

REPEATABLE = {"MKL_CBWR": "AUTO,STRICT"}
"""Else MKL's products depend on where in memory their factors lie, and the same training ends differently now and then."""


def tune_environment() -> None:
    """Let products repeat exactly, and replace this process by itself with the allocator tuned; what the user set stays.

    The allocator is tuned on Linux alone.
    """
    for name, value in REPEATABLE.items():
        os.environ.setdefault(name, value)  # read at MKL's first product
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update(ALLOCATOR)
    # glibc reads these when a process starts, so the process is replaced by itself.
    os.execv(sys.executable, [sys.executable, "-m", "retort.cli", *sys.argv[1:]])
