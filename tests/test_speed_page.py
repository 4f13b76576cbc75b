"""docs/speed.md is what `make benchmark` writes from results/speed.json, and names no machine but by its processor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "speed.json"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = ROOT / "benchmarks"
    if not folder.is_dir():
        pytest.skip("no benchmarks in this installation")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "all", raising=False)
    return folder


def test_the_page_is_current(benchmarks: Path) -> None:
    import all as everything  # type: ignore[import-not-found]

    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "speed.md").read_text(encoding="utf-8") == everything.page(report), (
        "run python benchmarks/all.py --page"
    )


def test_a_page_of_any_report(benchmarks: Path) -> None:
    import all as everything

    row = {"what": "time", "value": 2.5, "goal": 2.0, "at_most": True, "detail": "shown"}
    machine = {**everything.machine(), "cpu": "Processor X"}
    found = {"rows": [row, {**row, "at_most": False}], "load": 0.5, "machine": machine}
    report = {"benchmarks": {"cif": found, "store": {"missing": "no data"}}}
    lines = everything.page(report).splitlines()
    assert "| time | 2.5 | at most 2 | **no** | shown |" in lines
    assert "| time | 2.5 | at least 2 | yes | shown |" in lines
    assert any("no data" in line for line in lines)
    distance = everything.RUNS["cif"].distance
    assert distance
    assert distance in "\n".join(lines)
    found["rows"] = found["rows"][1:]
    assert distance not in everything.page(report)
    assert any("Processor X" in line for line in lines)


def test_results_hold_no_paths() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert not any(part in text for part in ("/home", "/root", "/tmp", "/work"))
