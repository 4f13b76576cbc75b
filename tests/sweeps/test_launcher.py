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
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from retort.common.errors import UserError
from retort.sweeps import launcher
from retort.sweeps.launcher import Training, run_trainings, start_here

A, B, C = (Training(f"demo/{name}", 4, (f"demo/{name}",)) for name in "abc")
TWO: list[dict[str, str]] = [{}, {}]

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
    monkeypatch.setattr(launcher, "POLL", 0.02)

    def use(program: str) -> None:
        command = (sys.executable, "-c", PLAYER + textwrap.dedent(program))
        monkeypatch.setattr(launcher, "COMMAND", command)

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
        print("printed by", name)
        """
    )
    assert (
        run_trainings(
            console, Path("exp"), [replace(each, arguments=(each.name, "seed=3")) for each in (A, B)], TWO
        )
        == {}
    )
    assert Path("exp/demo/a/here").read_text() == Path("exp/demo/b/here").read_text() == "seed=3"
    shown = text_of(console)
    assert "demo/a  step     4  validation: CER 25.00%" in shown
    assert "demo/b  step     4  validation: CER 50.00%" in shown
    assert shown.count("4/4") == 2
    assert "printed by demo/b" in Path("exp/demo/b.log").read_text()


def test_a_resumed_training_does_not_repeat_what_was_reported(play: Play, console: Console) -> None:
    folder = Path("exp/demo/a")
    folder.mkdir(parents=True)
    line = {"step": 2, "validation.cer": 0.75}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 3, "loss": 1.0}\n{"ste')
    shorter = f"(folder / 'shorter').write_text({json.dumps(line) + chr(10)!r})"
    play(f"{shorter}; (folder / 'shorter').replace(folder / 'metrics.jsonl'); write(step=4, warning='late')")
    assert run_trainings(console, Path("exp"), [A], TWO) == {}
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
    failed = run_trainings(console, Path("exp"), [A, B], TWO)
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

    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, before)  # under nohup SIGHUP is ignored, as it should be
    threading.Thread(target=send).start()
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        run_trainings(console, Path("exp"), [A, B], TWO)
    after = signal.signal(number, inherited)
    if number != signal.SIGINT:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 128 + number
    assert all(path.with_name("stopped").exists() for path in here)
    assert "each training writes a checkpoint" in text_of(console)
    assert after is before


def test_one_that_does_not_stop_is_killed(
    play: Play, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "PATIENCE", 0.2)
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
        run_trainings(console, Path("exp"), [A], TWO)
    assert started[0].returncode == -signal.SIGKILL


def test_an_experiment_that_another_process_trains_is_waited_for(play: Play, console: Console) -> None:
    play(
        "(folder / 'here').touch()\nwhile not (folder / 'go').exists(): time.sleep(0.01)\nwrite(step=4, loss=2.0)"
    )
    log = Path("exp/demo/b.log")
    log.parent.mkdir(parents=True)
    left = start_here(B, log, {})  # as one that was killed leaves it
    try:
        wait_for(Path("exp/demo/b/here").exists)
        with pytest.raises(BlockingIOError):
            start_here(B, log, {})
        states = []

        def ended(training: Training, error: UserError | None) -> UserError | None:
            states.append((training.name, left.poll()))
            Path("exp/demo/b/go").touch()
            return error

        Path("exp/demo/a").mkdir()
        Path("exp/demo/a/go").touch()
        assert run_trainings(console, Path("exp"), [A, B], TWO, ended=ended) == {}
    finally:
        left.kill()
        left.wait()
    assert states == [("demo/a", None), ("demo/b", 0)]


def test_they_take_turns_in_the_places_that_there_are(play: Play, console: Console) -> None:
    play(
        """
        import os
        (folder / "place").write_text(os.environ["PLACE"])
        running = folder.parent / f"running-{os.environ['PLACE']}"
        running.touch(exist_ok=False)
        time.sleep(0.2)
        running.unlink()
        write(step=4, loss=1.0)
        """
    )
    places = [{"PLACE": "first"}, {"PLACE": "second"}]
    assert run_trainings(console, Path("exp"), [A, B, C], places) == {}
    used = [Path(f"exp/demo/{name}/place").read_text() for name in "abc"]
    assert used[:2] == ["first", "second"]
    assert "3/3" in text_of(console)


def test_one_begins_only_when_what_it_needs_is_there(play: Play, console: Console) -> None:
    play(
        "assert name != 'demo/c' or (folder.parent / 'a/done').exists(); time.sleep(0.2); (folder / 'done').touch()"
    )
    trainings = [A, B, replace(C, after=("demo/a",))]
    assert run_trainings(console, Path("exp"), trainings, [{}] * 3) == {}


def test_without_what_it_needs_it_is_not_begun(play: Play, console: Console) -> None:
    play("if name == 'demo/a': sys.exit('retort: it is ill')")
    reported = []

    def ended(training: Training, error: UserError | None) -> UserError | None:
        reported.append((training.name, error is None))
        return error

    trainings = [A, B, replace(C, after=("demo/a",))]
    failed = run_trainings(console, Path("exp"), trainings, TWO, ended=ended)
    assert str(failed["demo/c"]) == "demo/c: not started, because demo/a failed"
    assert not Path("exp/demo/c").exists()
    assert sorted(reported) == [("demo/a", False), ("demo/b", True), ("demo/c", False)]
