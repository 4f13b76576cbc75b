"""The trainings are played by small programs that write what `retort train` writes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from retort.config import Recipe, TrainingConfig
from retort.demo import side_by_side
from retort.demo.side_by_side import train_side_by_side
from retort.errors import UserError

A, B = (Recipe(name=f"demo/{name}", training=TrainingConfig(steps=4)) for name in "ab")

PLAYER = """
import json, pathlib, signal, sys, time
name, *overrides = sys.argv[1:]
folder = pathlib.Path("exp") / name
folder.mkdir(parents=True, exist_ok=True)
def write(**line):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
def stop(*_):
    (folder / "stopped").touch()
    sys.exit(143)
"""

Play = Callable[[str], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """`play(program)`: what runs in place of `retort train`, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "POLL", 0.02)

    def use(program: str) -> None:
        command = (sys.executable, "-c", PLAYER + textwrap.dedent(program))
        monkeypatch.setattr(side_by_side, "COMMAND", command)

    return use


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """As from a terminal: a shell lets what it starts in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=160)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def test_all_run_at_the_same_time_with_the_same_settings(play: Play, console: Console) -> None:
    # Each waits for the other, so that one after the other would never end.
    play(
        """
        (folder / "here").write_text(" ".join(overrides))
        other = {"demo/a": "b", "demo/b": "a"}[name]
        while not (folder.parent / other / "here").exists(): time.sleep(0.01)
        write(step=2, loss=3.5)
        write(step=4, **{"validation.cer": 0.25 if name == "demo/a" else 0.5})
        print("said by", name)
        """
    )
    assert train_side_by_side(console, Path("exp"), [A, B], ["seed=3"]) == {}
    assert Path("exp/demo/a/here").read_text() == Path("exp/demo/b/here").read_text() == "seed=3"
    shown = text_of(console)
    assert "demo/a  step     4  validation: CER 25.00%" in shown
    assert "demo/b  step     4  validation: CER 50.00%" in shown
    assert shown.count("4/4") == 2
    assert "said by demo/b" in Path("exp/demo/b.log").read_text()


def test_a_resumed_training_does_not_repeat_what_was_told(play: Play, console: Console) -> None:
    folder = Path("exp/demo/a")
    folder.mkdir(parents=True)
    line = {"step": 2, "validation.cer": 0.75}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 3, "loss": 1.0}\n{"ste')
    play(
        f"(folder / 'metrics.jsonl').write_text({json.dumps(line) + chr(10)!r}); write(step=4, warning='late')"
    )
    assert train_side_by_side(console, Path("exp"), [A]) == {}
    shown = text_of(console)
    assert "75" not in shown
    assert shown.count("demo/a  step     4  late") == 1


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("print('retort: the disk is full'); sys.exit(2)", "training failed (exit code 2): the disk is full"),
        ("print('before'); raise RuntimeError('odd')", "training failed (exit code 1): RuntimeError: odd"),
        ("import os; os.kill(os.getpid(), 9)", "training failed (killed by SIGKILL): it printed nothing"),
    ],
)
def test_one_that_fails_leaves_the_other_alone(play: Play, console: Console, end: str, words: str) -> None:
    play(f"if name == 'demo/b': {end}\ntime.sleep(0.3); write(step=4, loss=1.0)")
    failed = train_side_by_side(console, Path("exp"), [A, B])
    assert failed.keys() == {"demo/b"}
    assert str(failed["demo/b"]) == f"exp/demo/b.log: {words}"
    shown = text_of(console)
    assert "done" in shown
    assert "failed" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_all_write_their_checkpoint(play: Play, console: Console, number: int) -> None:
    play("signal.signal(signal.SIGTERM, stop); (folder / 'here').touch(); time.sleep(60)")
    here = [Path(f"exp/demo/{name}/here") for name in "ab"]

    def send() -> None:
        wait_for(lambda: all(path.exists() for path in here))
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        train_side_by_side(console, Path("exp"), [A, B])
    if number != signal.SIGINT:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 128 + number
    assert all(path.with_name("stopped").exists() for path in here)
    assert "each training writes a checkpoint" in text_of(console)
    assert signal.getsignal(number) is before


def test_one_that_does_not_stop_is_killed(
    play: Play, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "PATIENCE", 0.2)
    play("signal.signal(signal.SIGTERM, signal.SIG_IGN); (folder / 'here').touch(); time.sleep(60)")
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1]
    )

    def send() -> None:
        wait_for(Path("exp/demo/a/here").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(console, Path("exp"), [A])
    assert started[0].returncode == -signal.SIGKILL


def test_two_processes_never_train_one_experiment(play: Play, console: Console) -> None:
    play("signal.signal(signal.SIGTERM, stop); (folder / 'here').touch(); time.sleep(60)")
    left = side_by_side._Run(Path("exp"), B, [])  # as a demo that was killed leaves it
    try:
        wait_for(Path("exp/demo/b/here").exists)
        with pytest.raises(UserError, match=r"demo/b is being trained by another process\. Wait for it"):
            train_side_by_side(console, Path("exp"), [A, B])
        assert left.process.poll() is None
    finally:
        left.process.kill()
        left.process.wait()
    play("write(step=4, loss=1.0)")
    assert train_side_by_side(console, Path("exp"), [A, B]) == {}
