"""The runs are those of the verb, in this process, where nothing has to be imported again."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from rich.console import Console

from retort import cli
from retort.evaluation.results import read_results
from retort.sweeps import launcher
from retort.sweeps import run as sweeps
from retort.sweeps.config import Sweep, load_sweep
from retort.sweeps.launcher import Training
from retort.sweeps.run import run_sweep

WriteRecipe = Callable[..., Path]
LoadSweep = Callable[..., Sweep]

TEXT = """
name: study
seeds: [1, 2]
against: plain
common: [training.steps=2, training.evaluate_steps=2]
systems:
  plain: {{recipe: {recipe}}}
  ill: {{recipe: {recipe}, set: ['data.train=[no/such/data]']}}
  large: {{recipe: {recipe}, set: [student.decoder.layers=2, training.warm_start={warm}]}}
"""


class Ended:
    """A process that has come to its end."""

    def __init__(self, state: int) -> None:
        self.state = state

    def poll(self) -> int:
        return self.state

    def wait(self, timeout: float | None = None) -> int:
        return self.state

    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@pytest.fixture
def load(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadSweep:
    """`load(*overrides)`: the sweep above, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "POLL", 0.0)
    warm = write_recipe("warm", "\nsystem: warm\n")
    warm.write_text(warm.read_text().replace("steps: 12,", "steps: 2,"))
    path = tmp_path / "study.yaml"
    path.write_text(TEXT.format(recipe=write_recipe(), warm=warm))
    return lambda *overrides: load_sweep(str(path), overrides)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Experiments in the order in which their trainings were started, which end before `start` comes back."""
    names: list[str] = []

    def start(training: Training, log: Path, environment: Mapping[str, str]) -> Ended:
        names.append(training.name)
        monkeypatch.setattr(sys, "argv", ["retort", *training.arguments])
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file), monkeypatch.context() as patch:
            for module in ("console", "train"):
                patch.setattr(f"retort.verbs.{module}.console", Console(file=file, width=300))
            try:
                cli.main()
            except SystemExit as stop:
                return Ended(int(stop.code or 0))
        return Ended(0)

    monkeypatch.setattr(sweeps, "start_here", start)
    return names


def sweep_up(sweep: Sweep) -> tuple[sweeps.SweepResults, str]:
    console = Console(file=io.StringIO(), width=250)
    sweep_results = run_sweep(console, Path("exp"), sweep, Path("results/study.json"))
    sweep_results.show(console)
    assert isinstance(console.file, io.StringIO)
    return sweep_results, console.file.getvalue()


def test_a_sweep_with_a_run_that_fails_and_again(load: LoadSweep, begun: list[str]) -> None:
    sweep_results, shown = sweep_up(load())
    runs = [f"study/{name}-{seed}" for seed in (1, 2) for name in ("plain", "ill", "large")]
    assert begun == ["warm", *runs]
    assert list(sweep_results.failed) == ["study/ill-1", "study/ill-2"]
    assert "exp/study/ill-1.log: training failed (exit code 2): no/such/data: no such file or folder" in shown
    assert "study/plain-2 is done" in shown
    rows = read_results(Path("results/study.json"))
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        (f"study/{name}-{seed}", seed) for seed in (1, 2) for name in ("plain", "large")
    ]
    text = Path("exp/study/table.md").read_text()
    assert "4 of 6 runs are done" in text
    assert "| failed, failed |" in text
    (content,) = json.loads(Path("exp/study/table.json").read_text())
    systems = {each["name"]: each for each in content["systems"]}
    assert [systems["large"]["seeds"][str(seed)] for seed in (1, 2)] == [row["cer"] for row in rows[1::2]]
    assert systems["large"]["shared"] == [1, 2]
    assert systems["large"]["params"] == rows[1]["params"] > rows[0]["params"]  # type: ignore[operator]

    # The same again: what is done costs nothing and is in the results once; what failed is tried again, and what
    # has no row of results is scored again but not trained.
    Path("exp/study/plain-1/results.json").unlink()
    metrics = Path("exp/study/plain-1/metrics.jsonl").read_bytes()
    begun.clear()
    again, _ = sweep_up(load("seeds=[1]", "systems.ill.set=[]"))
    assert begun == ["study/plain-1", "study/ill-1"]
    assert Path("exp/study/plain-1/metrics.jsonl").read_bytes() == metrics
    assert again.failed == {}
    for name in ("study/plain-1", "study/large-1"):
        assert again.done[name].evaluations[0].score == sweep_results.done[name].evaluations[0].score
    there = read_results(Path("results/study.json"))
    assert there[:4] == rows
    assert [row["recipe"] for row in there[4:]] == ["study/ill-1"]
    assert "3 of 3 runs are done" in Path("exp/study/table.md").read_text()


def test_the_verb_tells_what_failed(
    load: LoadSweep, begun: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    overrides = ["seeds=[3]", "common=['data.train=[no/such]']", "systems.large.set=[]"]
    monkeypatch.setattr(sys, "argv", ["retort", "sweep", "study.yaml", *overrides, "--jobs", "1"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert begun == ["study/plain-3", "study/ill-3", "study/large-3"]
    assert capsys.readouterr().err == (
        "retort: exp/study/table.md: these runs failed: study/plain-3, study/ill-3, study/large-3. "
        "Run the same command again to retry them\n"
    )


def test_a_warm_start_that_fails_is_reported_of_those_that_need_it(load: LoadSweep, begun: list[str]) -> None:
    warm = Path("warm.yaml")
    warm.write_text(warm.read_text().replace("train: [", "train: [no/"))
    sweep_results, _ = sweep_up(load("seeds=[1]", "systems.ill.set=[]"))
    assert begun == ["warm", "study/plain-1", "study/ill-1"]
    assert list(sweep_results.failed) == ["warm", "study/large-1"]
    assert "study/large-1: not started, because warm failed" in Path("exp/study/table.md").read_text()


def test_every_run_is_decoded_in_every_way(load: LoadSweep, begun: list[str]) -> None:
    broken = ("systems.ill.set=[]", "systems.large.set=['data.train=[no/such/data]']")
    settings = ("seeds=[1]", "decode={greedy: {}, wide: {beam: 3, nbest: 2}}", *broken)
    first, _ = sweep_up(load("seeds=[1]", *broken))
    assert first.complete == 2
    names = [run.recipe.name for run in first.sweep.runs]
    metrics = Path("exp/study/plain-1/metrics.jsonl").read_bytes()
    begun.clear()
    sweep_results, shown = sweep_up(load(*settings))
    scorings = [sweep_results.sweep.scoring(run, sweep_results.sweep.views[1]) for run in sweep_results.sweep.runs]
    # What was trained is only decoded once more; a training that fails leaves its decodings out.
    assert begun == [scorings[0], scorings[1], names[2]]
    assert Path("exp/study/plain-1/metrics.jsonl").read_bytes() == metrics
    assert list(sweep_results.failed) == [names[2], scorings[2]]
    assert f"{scorings[2]}: not started, because {names[2]} failed" in shown
    assert sweep_results.complete == 2
    (_, wide) = json.loads(Path("exp/study/table.json").read_text())
    assert wide["decoding"] == "wide"
    assert "no/such/data: no such file" in wide["systems"][2]["unfinished"]["1"]  # what failed first
    rows = read_results(Path("results/study.json"))
    reported = [(row["recipe"], row["system"], row.get("decoding", "")) for row in rows]
    systems = ["plain", "ill"]
    assert reported == [(n, s, d) for d in ("", "wide") for n, s in zip(names, systems)]
    for row, name in zip(rows[2:], names):
        found = sweep_results.done[name].views[1]
        assert found is not None
        assert (row["cer"], row["commit"]) == (found.score.cer, rows[0]["commit"])
        assert len((found.folder / "hyp.jsonl").read_text().splitlines()) == 6
    begun.clear()
    again, _ = sweep_up(load(*settings, "systems.large.set=[]"))
    assert begun == [names[2], scorings[2]]
    assert again.complete == 3


def test_a_teacher_that_is_not_trained_yet_is_named(load: LoadSweep, begun: list[str]) -> None:
    teacher = "teachers={bert: {model: exp/lm/english_bert, dim: 16}}"
    row = "distill=[{tap: acoustic, teacher: bert, loss: cosine}]"
    # The others fail at once, for the sake of time; that they go on is told above.
    nothing = ("common=['data.train=[no/such/data]']", "systems.large.set=[]")
    sweep_results, shown = sweep_up(load("seeds=[1]", *nothing, f"systems.ill.set={json.dumps([teacher, row])}"))
    line = "exp/lm/english_bert: no such experiment. Train it first: retort lm train lm/english_bert"
    assert str(sweep_results.failed["study/ill-1"]).endswith(line)
    assert line in shown
    assert line in Path("exp/study/table.md").read_text()


def test_what_is_done_stays_in_the_table_of_a_stopped_sweep(
    load: LoadSweep, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = sweeps.start_here

    def stopping(training: Training, log: Path, environment: Mapping[str, str]) -> object:
        if training.name == "study/large-1":
            raise KeyboardInterrupt
        return start(training, log, environment)

    monkeypatch.setattr(sweeps, "start_here", stopping)
    sweep = load("seeds=[1]", "systems.ill.set=[]", "systems.large.set=[]")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(Console(file=io.StringIO()), Path("exp"), sweep, Path("results/study.json"), jobs=1)
    assert "2 of 3 runs are done" in Path("exp/study/table.md").read_text()
    assert "| not finished |" in Path("exp/study/table.md").read_text()
    assert len(read_results(Path("results/study.json"))) == 2
    monkeypatch.setattr(sweeps, "start_here", start)
    begun.clear()
    sweep_up(sweep)
    assert begun == ["study/large-1"]


def test_runs_at_once_are_those_that_the_cores_or_gpus_can_take(
    load: LoadSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    one, two = load().runs, load("common=[training.threads=2]").runs
    assert sweeps._places(one, None) == [{}] * 6
    assert sweeps._places(two, None) == [{}] * 3
    assert sweeps._places(two, 5) == [{}] * 5
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert sweeps._places(one, None) == [{}] * 6  # these recipes ask for the CPU
    gpu = load("common=[training.device=auto]").runs
    monkeypatch.delenv(sweeps.GPUS, raising=False)
    assert [place[sweeps.GPUS] for place in sweeps._places(gpu, None)] == ["0", "1"]
    assert [place[sweeps.GPUS] for place in sweeps._places(gpu, 3)] == ["0", "1", "0"]
    monkeypatch.setenv(sweeps.GPUS, "5,7")
    assert [place[sweeps.GPUS] for place in sweeps._places(gpu, None)] == ["5", "7"]
