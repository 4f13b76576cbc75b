"""Trainings as jobs of a Slurm cluster, through submitit (extra `slurm`)."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.sweeps import launcher
from retort.sweeps.launcher import Start, Training

CLUSTER = "slurm"
POLL = 1.0
"""Seconds between two checks of a job or its process."""


def start_on_slurm(folder: Path, settings: Mapping[str, Any]) -> Start:
    """A function that starts each training as a Slurm job, which is requeued when its time is up.

    Args:
        folder: for submitit's files; like the experiments, on a file system that the whole cluster shares.
        settings: submitit's parameters, such as `timeout_min`, `slurm_partition` and `gpus_per_node`.

    Raises:
        UserError: submitit is not installed, Slurm is not available, or a setting is unknown to submitit.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("submitit is not installed", remedy="pip install 'retort-asr[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=CLUSTER)
        executor.update_parameters(**settings)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise UserError(
            f"runs cannot be submitted to Slurm ({line})", remedy="Remove --slurm, or correct slurm:"
        ) from None

    def start(training: Training, log: Path, environment: Mapping[str, str]) -> _Job:
        command = (*launcher.COMMAND, *training.arguments)
        return _Job(executor.submit(_Command(command, log.absolute())), log)

    return start


class _Command:
    """The function of a job: runs the command with its output in the log, which is locked meanwhile."""

    def __init__(self, command: tuple[str, ...], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        with self.log.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},  # errors are read from the last line of the log
            )
        # Not wait(): submitit calls checkpoint() from a signal handler, which waits itself.
        while (state := self.process.poll()) is None:
            time.sleep(POLL)
        return state

    def checkpoint(self) -> Any:
        """Called by submitit before the job's time is up: the training saves, and a new job continues it."""
        import submitit

        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(launcher.PATIENCE)
        return submitit.helpers.DelayedSubmission(_Command(self.command, self.log))


class _Job:
    """A job with the interface of a process."""

    def __init__(self, job: Any, log: Path) -> None:
        self.job, self.log = job, log
        self.state: int | None = None

    def poll(self) -> int | None:
        """Exit code of the training; 1 for a lost job, whose error is written to the log."""
        if self.state is None and self.job.done():
            try:
                self.state = int(self.job.result())
            except Exception as error:  # of submitit, of the cluster, or what the job itself raised
                with self.log.open("a") as file:
                    file.write(f"job {self.job.job_id}: {' '.join(str(error).split())}\n")
                self.state = 1
        return self.state

    def terminate(self) -> None:
        """Cancel the job; Slurm sends its processes SIGTERM first."""
        self.job.cancel(check=False)

    def kill(self) -> None:
        if self.state is None:
            self.job.cancel(check=False)
            self.state = -9

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (state := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.log.name, timeout or 0.0)
            time.sleep(POLL)
        return state
