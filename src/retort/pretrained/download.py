"""Downloads packages with the registry's own client as a subprocess, without installing them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from retort.common.errors import UserError
from retort.pretrained.archives import sha256_of
from retort.pretrained.catalogue import Package

SECONDS = 3600
"""Timeout of the client in seconds."""
_POLL = 0.2


def download(package: Package, folder: Path, report: Callable[[int], None]) -> Path:
    """Fetch the archive of a package; a complete archive in `folder` is reused.

    Args:
        folder: folder of archives, created if missing.
        report: called with the number of bytes so far.

    Raises:
        UserError: the client is not installed, or the package is missing or has another checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{package.sha256[:16]}{'.whl' if package.registry == 'pip' else '.tgz'}"
    if archive.is_file():
        if sha256_of(archive) == package.sha256:
            report(package.bytes)
            return archive
        archive.unlink()
    prefix = f"partial-{package.sha256[:16]}-"
    for stale in folder.glob(f"{prefix}*"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as name:
        partial = Path(name)
        arrived = _run(package, partial, report)
        if (found := sha256_of(arrived)) != package.sha256:
            raise UserError(
                f"the archive is not that of the catalogue (SHA-256 {found[:12]}..., not {package.sha256[:12]}...)",
                where=package.name,
                remedy="Run the command again; if the error persists, the package was changed: do not use it",
            )
        arrived.replace(archive)
    report(package.bytes)
    return archive


def client_command(package: Package, out: Path) -> list[str]:
    """The command that fetches a package's archive into a folder.

    Raises:
        UserError: the client is not installed.
    """
    if package.registry == "npm":
        if (npm := shutil.which("npm")) is None:
            raise UserError("npm is not installed", where=package.name, remedy="Install Node.js")
        return [npm, "pack", "--ignore-scripts", "--silent", "--pack-destination", str(out), package.name]
    # Only wheels, since a source distribution runs its own code to determine its name.
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--retries=2",
        "--progress-bar=off",
        "--quiet",
    ]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(out), package.name]


def _run(package: Package, folder: Path, report: Callable[[int], None]) -> Path:
    """Run the client in a separate folder, whose size is the progress."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    places = {"TMPDIR": str(scratch), "npm_config_cache": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with (folder / "log").open("w+", encoding="utf-8", errors="replace") as log:
        client = subprocess.Popen(
            client_command(package, out),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **places},
            cwd=folder,
        )
        end = time.monotonic() + SECONDS
        try:
            while client.poll() is None:
                if time.monotonic() > end:
                    raise UserError(
                        f"the download did not end within {SECONDS} seconds", where=package.name, remedy="Try again"
                    )
                report(min(package.bytes, max(_size(out), _size(scratch))))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.wait(_POLL)
        finally:
            if client.poll() is None:
                client.kill()
                client.wait()
        log.seek(0)
        output = log.read()
    archives = [each for each in out.iterdir() if each.suffix in (".whl", ".tgz")]
    if client.returncode or len(archives) != 1:
        raise UserError(
            f"{package.registry} could not fetch it: {_last_error(output)}",
            where=package.name,
            remedy="Check the network and the index that pip uses"
            if package.registry == "pip"
            else "Check the network",
        )
    return archives[0]


def _size(folder: Path) -> int:
    found = 0
    for each in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a temporary file was removed
            found += each.stat().st_size if each.is_file() else 0
    return found


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return (errors[-1] if errors else "it returned no archive").removeprefix("ERROR: ").rstrip(".")[:200]
