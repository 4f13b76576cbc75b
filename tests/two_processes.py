"""Two processes of one run, on the CPU with gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing

Task = tuple[Any, ...]
"""A function and its arguments but the first, which is the number of the process; what it returns is kept."""


def run_in_two(folder: Path, tasks: Mapping[str, Task]) -> None:
    """Let two processes do every task; they are started once, for that takes longest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:  # on the threads hangs how a sum is rounded
        environment.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.spawn(_work, (port, folder, tasks), nprocs=2)


def results_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """What the two made of the task of this name."""
    return [torch.load(folder / f"{name}.{process}.pt", weights_only=True) for process in range(2)]


def _work(process: int, port: int, folder: Path, tasks: Mapping[str, Task]) -> None:
    place = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    for name, (task, *arguments) in tasks.items():
        torch.save(task(process, *arguments), folder / f"{name}.{process}.pt")
    torch.distributed.destroy_process_group()
