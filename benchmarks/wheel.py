"""Install a built wheel with the extra `runtime` in a fresh environment, measure it, and run it there.

python benchmarks/wheel.py dist [EXPORT]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import wave
import zipfile
from pathlib import Path

LARGEST = 150 * 2**20
"""Bytes of the installed packages, as `du` counts megabytes."""
DATA = (".yaml", ".html", "py.typed")
"""Endings of files of the package that are not code."""


def main() -> None:
    wheel = max(Path(sys.argv[1]).glob("*.whl"), key=lambda each: each.stat().st_mtime)
    source = Path(__file__).parent.parent / "src"
    missing = [
        name
        for each in sorted((source / "retort").rglob("*"))
        if each.is_file() and each.name.endswith((".py", *DATA))
        and (name := each.relative_to(source).as_posix()) not in zipfile.ZipFile(wheel).namelist()
    ]  # fmt: skip
    assert not missing, f"not in the wheel: {missing}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
        python, command = root / "venv/bin/python", root / "venv/bin/retort"
        packages = next((root / "venv/lib").glob("*/site-packages"))
        before = size(packages)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-compile", f"{wheel}[runtime]"], check=True
        )
        installed = size(packages) - before
        print(f"installed: {installed / 2**20:.0f} MB")
        started = time.perf_counter()
        subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL, cwd=root)
        print(f"retort --help: {time.perf_counter() - started:.2f} s")
        assert not (packages / "torch").exists()
        if len(sys.argv) > 2:
            with wave.open(str(root / "silence.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(16000)
                file.writeframes(bytes(range(256)) * 125)
            model = Path(sys.argv[2]).resolve()
            for turn in ("first", "second"):
                started = time.perf_counter()
                subprocess.run([command, "transcribe", model, "silence.wav"], check=True, cwd=root)
                print(f"retort transcribe, {turn} time: {time.perf_counter() - started:.2f} s")
        assert installed < LARGEST, f"more than {LARGEST / 2**20:.0f} MB"


def size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


if __name__ == "__main__":
    main()
