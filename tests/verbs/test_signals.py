"""SIGTERM and Ctrl-C at any moment of any verb: one line, their exit codes, nothing half written left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

WriteRecipe = Callable[..., Path]
SLOW = """
import os, sys, threading, time
from pathlib import Path
sys.argv = ["retort", *sys.argv[1:]]
from retort import cli

def stop(*_):
    Path("reached").touch()
    time.sleep(60)

os.fsync = stop
cli.main()
"""
"""The command, which stops where it first makes a file last."""
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def usual_handlers() -> None:
    """As a shell gives them, also where the tests themselves run under `nohup` or in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def stopped(folder: Path, number: signal.Signals, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal while it writes its first file."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=usual_handlers,
    )
    while process.poll() is None and not (folder / "reached").exists():
        time.sleep(0.02)
    (folder / "reached").unlink(missing_ok=True)
    process.send_signal(number)
    return process.wait(60), process.communicate()[1]


@pytest.mark.parametrize("number", CODES)
def test_train(tmp_path: Path, write_recipe: WriteRecipe, number: signal.Signals) -> None:
    code, message = stopped(tmp_path, number, "train", write_recipe())
    assert code == CODES[number], message
    assert [line for line in message.splitlines() if line.strip()] == [message.strip()]
    assert message.startswith("retort: stopped")
    assert [path for path in (tmp_path / "exp").rglob("*") if path.is_file()] == []


def test_prepare(tmp_path: Path, corpus: Path) -> None:
    code, message = stopped(tmp_path, signal.SIGTERM, "prepare", "kaldi", corpus / "train", "out")
    assert (code, message) == (143, "retort: stopped\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_lm_train(tmp_path: Path) -> None:
    for name in ("text", "held_out"):
        (tmp_path / f"{name}.txt").write_text("one two\ntwo one\n")
    (tmp_path / "lm.yaml").write_text(
        "kind: ngram\nname: w\ntext: [{source: text.txt}]\nheld_out: [held_out.txt]\n"
        "normaliser: {case: lower}\ntokenizer: {kind: words}\nngram: {order: 2}\n"
    )
    code, message = stopped(tmp_path, signal.SIGTERM, "lm", "train", "lm.yaml")
    assert code == 143, message
    assert message.count("\n") == 1
    assert [path for path in (tmp_path / "exp").rglob("*") if path.is_file()] == []
