"""Slurm itself is not here: submitit's executor of local processes stands in its place."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from retort.common.errors import UserError
from retort.sweeps import launcher, slurm
from retort.sweeps.launcher import Training, run_trainings

PROGRAM = """
import pathlib, sys
name, *_ = sys.argv[1:]
folder = pathlib.Path("exp") / name
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\\n')
print("printed by", name)
if name == "b": sys.exit("retort: it is ill")
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setattr(slurm, "POLL", 0.02)
    monkeypatch.setattr(launcher, "POLL", 0.05)
    monkeypatch.setattr(launcher, "COMMAND", (sys.executable, "-c", PROGRAM))


@pytest.mark.usefixtures("cluster")
def test_jobs_are_trainings() -> None:
    trainings = [Training(name, 4, (name,)) for name in "ab"]
    start = slurm.start_on_slurm(Path("exp/slurm"), {"timeout_min": 1})
    console = Console(file=io.StringIO(), width=160)
    failed = run_trainings(console, Path("exp"), trainings, [{}, {}], start=start)
    assert {name: str(error) for name, error in failed.items()} == {
        "b": "exp/b.log: training failed (exit code 1): it is ill"
    }
    assert "printed by a" in Path("exp/a.log").read_text()


@pytest.mark.usefixtures("cluster")
def test_a_job_that_is_lost_is_a_failure() -> None:
    class Lost:
        job_id = "17"

        def done(self) -> bool:
            return True

        def result(self) -> int:
            raise RuntimeError("node n3\nfailed")

        def cancel(self, check: bool = True) -> None: ...

    log = Path("a.log")
    job = slurm._Job(Lost(), log)
    assert job.wait(1.0) == 1
    assert log.read_text() == "job 17: node n3 failed\n"


@pytest.mark.usefixtures("cluster")
def test_before_its_time_is_up_a_training_saves_and_another_job_goes_on() -> None:
    program = "import pathlib, signal, sys, time\n"
    program += "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(143)))\n"
    program += "pathlib.Path('here').touch(); time.sleep(60)"
    command = slurm._Command((sys.executable, "-c", program), Path("a.log"))
    command.process = subprocess.Popen(command.command)
    while not Path("here").exists():
        assert command.process.poll() is None
    again = command.checkpoint()
    assert Path("saved").exists()
    assert again.function.command == command.command
    assert again.function.process is None  # it can be sent to another machine


def test_without_submitit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"submitit is not installed\. pip install 'retort-asr\[slurm\]'"):
        slurm.start_on_slurm(tmp_path, {})


def test_without_slurm_or_with_a_wrong_setting_it_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="runs cannot be submitted to Slurm") as caught:
        slurm.start_on_slurm(tmp_path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cluster")
def test_a_setting_that_submitit_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="minutes"):
        slurm.start_on_slurm(tmp_path, {"minutes": 3})
