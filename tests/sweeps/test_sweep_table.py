from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.config.schema import DataConfig, Recipe
from retort.decoding.options import DecodingOptions
from retort.evaluation import intervals
from retort.evaluation.bootstrap import SEED
from retort.evaluation.evaluate import Evaluation
from retort.evaluation.scoring import REPLICATES, Counts, Interval, Score, UtteranceScore
from retort.report.plots import Point, plot_setting
from retort.sweeps.config import Row, Run, Sweep, View
from retort.sweeps.results import SweepResults
from retort.sweeps.scored import Scored
from retort.sweeps.table import comparison_table, line_to_dict, lines_of, rates_table, remarks, runs_table

WORDS, UTTERANCES, SPEAKERS = 20, 60, 30
VIEW = View("x/test")


def make_score(rate: float, seed: int, speakers: int = SPEAKERS) -> Score:
    """Speakers differ, and so do the seeds; characters are five times the words, with as many errors."""
    draw = np.random.default_rng(seed)
    rates = np.clip(rate + np.random.default_rng(99).normal(0, 0.08, speakers), 0.01, 0.99)
    errors = draw.binomial(WORDS, rates[np.arange(UTTERANCES) % speakers])
    return Score(
        [
            UtteranceScore(f"u{i}", f"s{i % speakers}", Counts(WORDS, int(e)), Counts(5 * WORDS, int(e)))
            for i, e in enumerate(errors)
        ]
    )


def make_scored(score: Score) -> Scored:
    evaluation = Evaluation("x/test", score, intervals(score), [], Path())
    return Scored(1234, 90.0, [evaluation], [evaluation])


def make_sweep(*names: str, seeds: tuple[int, ...] = (1, 2, 3), against: str = "") -> Sweep:
    rows = []
    for name in names:
        recipes = [
            Recipe(name=f"s/{name}-{seed}", seed=seed, data=DataConfig(test=["x/test"])) for seed in seeds
        ]
        system, _, value = name.partition("=")
        curves = {system: ("weight", float(value))} if value else {}
        rows.append(Row(name, tuple(Run(recipe, ()) for recipe in recipes), curves))
    return Sweep("s", against or names[0], tuple(rows), (VIEW,), {})


def done_of(rates: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, Scored]:
    return {
        f"s/{name}-{seed}": make_scored(make_score(rate, 10 * seed + place))
        for place, (name, rate) in enumerate(rates.items())
        for seed in seeds
    }


def slow_replicates(done: dict[str, Scored], name: str, against: str = "") -> list[float]:
    """CER of the seeds of a system (less that of another one), speakers drawn one by one."""
    names = sorted({f"s{i}" for i in range(SPEAKERS)})
    rates = []
    generator = np.random.default_rng(SEED)
    sums: dict[str, tuple[int, int]] = {}
    for speaker in names:
        errors = length = 0
        for seed in (1, 2, 3):
            for sign, system in ((1, name), (-1, against)):
                for utterance in done[f"s/{system}-{seed}"].evaluations[0].score.utterances if system else []:
                    if utterance.speaker == speaker:
                        errors += sign * utterance.characters.errors
                        length += utterance.characters.reference if sign > 0 else 0
        sums[speaker] = errors, length
    for drawn in generator.integers(len(names), size=(REPLICATES, len(names))):
        total = [sums[names[block]] for block in drawn]
        rates.append(sum(errors for errors, _ in total) / sum(length for _, length in total))
    return rates


def test_all_seeds_of_a_speaker_are_drawn_together() -> None:
    done = done_of({"a": 0.4, "b": 0.3})
    first, second = lines_of(make_sweep("a", "b"), VIEW, done, {})
    found = second.rates["cer"]
    assert found.rate == pytest.approx(np.mean(list(second.seeds.values())))
    slow = slow_replicates(done, "b")
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))
    # Were the seeds' speakers others each time, the interval would be narrower by the root of their number.
    single = intervals(done["s/b-1"].evaluations[0].score)["cer"]
    assert found.high - found.low > 0.7 * (single.high - single.low)
    slow = slow_replicates(done, "b", "a")
    difference = second.against["cer"]
    assert (difference.low, difference.high) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))
    assert difference.difference == pytest.approx(found.rate - first.rates["cer"].rate)
    assert first.against == {}


@pytest.mark.parametrize(("against", "other", "sign"), [("good", "bad", 1), ("bad", "good", -1)])
def test_which_is_better_shows_in_sign_interval_and_p(against: str, other: str, sign: int) -> None:
    done = done_of({"good": 0.25, "bad": 0.4})
    lines = lines_of(make_sweep("good", "bad", against=against), VIEW, done, {})
    line = next(each for each in lines if each.name == other)
    for found in line.against.values():
        assert np.sign([found.difference, found.low, found.high]).tolist() == [sign] * 3
        assert found.p < 0.01
    table = comparison_table(lines, against)
    assert table is not None
    assert table.rows[0][0] == other
    assert table.rows[0][2].startswith("+" if sign > 0 else "-")
    relative = float(table.rows[0][5].rstrip("%"))
    assert relative == pytest.approx(100 * (0.4 / 0.25 - 1) if sign > 0 else 100 * (0.25 / 0.4 - 1), abs=15)


def test_the_differences_of_the_seeds_are_listed_and_tested() -> None:
    done = done_of({"a": 0.4, "b": 0.3})
    lines = lines_of(make_sweep("a", "b"), VIEW, done, {})
    first, second = lines
    expected = [second.seeds[seed] - first.seeds[seed] for seed in (1, 2, 3)]
    assert second.by_seed["cer"] == pytest.approx(expected)
    assert np.mean(expected) == pytest.approx(second.against["cer"].difference)
    table = comparison_table(lines, "a")
    assert table is not None
    listed = dict(zip(table.header, table.rows[0], strict=True))
    assert listed["by seed"] == ", ".join(f"{seed}: {each:+.2%}" for seed, each in zip((1, 2, 3), expected))
    found = line_to_dict(second)["against"]["cer"]["p_over_seeds"]
    assert 0 < found < 0.05
    assert float(listed["p over seeds"]) == pytest.approx(found, rel=0.1)


def test_two_that_are_alike_are_not_distinguished() -> None:
    (_, line) = lines_of(make_sweep("a", "b"), VIEW, done_of({"a": 0.3, "b": 0.3}), {})
    found = line.against["cer"]
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_only_seeds_that_both_have_are_compared() -> None:
    done = done_of({"a": 0.3, "b": 0.3})
    del done["s/a-1"], done["s/b-3"]
    failed = {"s/a-1": UserError("the disk is full", where="s/a-1.log")}
    first, second = lines_of(make_sweep("a", "b"), VIEW, done, failed)
    assert second.shared == [2]
    assert list(second.seeds) == [1, 2]
    assert second.deviation == pytest.approx(abs(second.seeds[1] - second.seeds[2]) / 2**0.5)
    assert first.unfinished == {1: "failed: s/a-1.log: the disk is full"}
    assert second.unfinished == {3: "not finished"}
    assert remarks([first, second]) == ["a, seed 1, failed: s/a-1.log: the disk is full"]
    cells = runs_table([first, second])
    assert cells.header[1] == "CER, seeds 1, 2, 3"
    assert cells.rows[0][1].startswith("failed, ")
    assert cells.rows[1][1].endswith("%, not finished")


def test_nothing_is_done_yet() -> None:
    lines = lines_of(make_sweep("a", "b"), VIEW, {}, {})
    assert rates_table(lines).rows[1] == ["b", "", "", "", ""]
    assert runs_table(lines).rows[1] == ["b", "not finished, not finished, not finished", "", "", ""]
    assert comparison_table(lines, "a") is None
    json.dumps([line_to_dict(line) for line in lines])


def test_a_test_set_that_changed_between_runs_is_reported() -> None:
    done = done_of({"a": 0.3})
    other = done["s/a-2"].evaluations[0].score
    other.utterances.pop()
    (line,) = lines_of(make_sweep("a"), VIEW, done, {})
    assert line.rates == {}
    assert "1 utterances are only in one score" in line.note
    assert "Evaluate both" in remarks([line])[-1]


def test_of_one_speaker_the_utterances_are_drawn_and_it_is_reported() -> None:
    done = {f"s/a-{seed}": make_scored(make_score(0.3, seed, speakers=1)) for seed in (1, 2, 3)}
    (line,) = lines_of(make_sweep("a"), VIEW, done, {})
    assert line.rates["cer"].resampled == "utterances"
    assert "only one speaker" in line.note


def test_grids_over_a_number_become_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: dict[str, tuple[list[Point], str]] = {}

    def plot(
        points: list[Point], key: str, label: str, path: Path, compared: tuple[str, Interval] | None
    ) -> None:
        drawn[path.name] = points, compared[0] if compared else ""
        plot_setting(points, key, label, path, compared)

    monkeypatch.setattr("retort.sweeps.results.plot_setting", plot)
    sweep = make_sweep("plain", "own", "w=0.1", "w=1", "w=10", "v=2", "v=3")
    own = replace(sweep.rows[1], curves={"w": ("weight", 0.5), "v": ("weight", 2.5)})
    sweep = replace(sweep, rows=(sweep.rows[0], own, *sweep.rows[2:]))
    sweep_results = SweepResults(sweep, tmp_path, tmp_path / "results.json")
    sweep_results.done = done_of({"plain": 0.4, "w=0.1": 0.3})
    sweep_results.write()
    assert drawn == {}  # one value is no curve
    rates = {"plain": 0.4, "own": 0.28, "w=0.1": 0.3, "w=1": 0.25, "w=10": 0.35}
    sweep_results.done = done_of(rates)
    sweep_results.write()
    assert drawn.keys() == {"grid-w.png"}
    sweep_results.done = done_of({**rates, "v=3": 0.3})
    sweep_results.write()
    assert {name: [point.value for point in points] for name, (points, _) in drawn.items()} == {
        "grid-w.png": [0.5, 0.1, 1, 10],
        "grid-v.png": [2.5, 3],
    }
    assert {compared for _, compared in drawn.values()} == {"plain"}
    (first, *_), _ = drawn["grid-w.png"]
    assert first.runs == [sweep_results.done[f"s/own-{seed}"].evaluations[0].score.cer for seed in (1, 2, 3)]
    for name in ("table.png", *drawn):
        assert (tmp_path / "s" / name).read_bytes().startswith(b"\x89PNG")
        assert f"![{name}]({name})" in (tmp_path / "s/table.md").read_text()


def test_every_view_has_its_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lm = View("x/test", "lm", DecodingOptions(beam=4))
    sweep = replace(make_sweep("a", "b"), views=(View("x/test", "greedy"), lm))
    done = done_of({"a": 0.4, "b": 0.3})
    better = done_of({"a": 0.2, "b": 0.2})
    for name, found in done.items():  # of one run the second view is still to come, of another it failed
        later = [None] if name in ("s/b-2", "s/b-3") else better[name].views
        done[name] = replace(found, views=[*found.views, *later])
    failed = {sweep.scoring(sweep.rows[1].runs[2], lm): UserError("no model here")}
    sweep_results = SweepResults(sweep, tmp_path, tmp_path / "results.json")
    sweep_results.done, sweep_results.failed = done, failed
    sweep_results.write()
    greedy, fused = json.loads((tmp_path / "s/table.json").read_text())
    assert (greedy["decoding"], fused["decoding"]) == ("greedy", "lm")
    assert list(greedy["systems"][1]["seeds"]) == ["1", "2", "3"]
    (first, second) = fused["systems"]
    assert first["rates"]["cer"]["rate"] < greedy["systems"][0]["rates"]["cer"]["rate"]
    assert (list(second["seeds"]), second["shared"]) == (["1"], [1])
    assert second["unfinished"] == {"2": "not finished", "3": "failed: no model here"}
    text = (tmp_path / "s/table.md").read_text()
    assert "## x/test, greedy" in text
    assert "## x/test, lm" in text
    assert "![table-x-test-greedy.png]" in text
    assert "4 of 6 runs are done" in text
    assert [sweep_results.missing_views(run) == [lm] for run in sweep.rows[1].runs] == [False, True, True]


def test_a_view_of_some_rows_has_a_table_of_these_and_asks_nothing_of_others(tmp_path: Path) -> None:
    wide = View("x/test", "wide", DecodingOptions(beam=4), ("c", "b"))
    sweep = replace(make_sweep("a", "b", "c", seeds=(1,)), views=(View("x/test", "greedy"), wide))
    sweep_results = SweepResults(sweep, tmp_path, tmp_path / "results.json")
    done = done_of({"a": 0.4, "b": 0.3, "c": 0.2}, seeds=(1,))
    sweep_results.done = {name: replace(found, views=[*found.views, None]) for name, found in done.items()}
    assert [sweep_results.missing_views(row.runs[0]) for row in sweep.rows] == [[], [wide], [wide]]
    assert sweep_results.complete == 1
    for name in ("s/b-1", "s/c-1"):
        sweep_results.done[name] = replace(done[name], views=[*done[name].views] * 2)
    assert sweep_results.complete == 3
    sweep_results.write()
    greedy, some = json.loads((tmp_path / "s/table.json").read_text())
    assert [[each["name"] for each in table["systems"]] for table in (greedy, some)] == [
        ["a", "b", "c"],
        ["b", "c"],
    ]
    assert (greedy["against"], some["against"]) == ("a", "b")
    assert some["systems"][1]["against"].keys() == {"cer", "wer"}
    assert "less b" in (tmp_path / "s/table.md").read_text().partition("x/test, wide")[2]


def test_without_matplotlib_there_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sweep_results = SweepResults(make_sweep("a", "b"), tmp_path, tmp_path / "results.json")
    sweep_results.done = done_of({"a": 0.4, "b": 0.3})
    sweep_results.write()
    assert "matplotlib is not installed" in sweep_results.missing
    text = (tmp_path / "s/table.md").read_text()
    assert "| b | CER | -" in text
    assert ".png" not in text
    (content,) = json.loads((tmp_path / "s/table.json").read_text())
    assert [each["name"] for each in content["systems"]] == ["a", "b"]
    compared = content["systems"][1]["against"]["cer"]
    assert compared["relative"] == pytest.approx(compared["difference"] / compared["first"])
