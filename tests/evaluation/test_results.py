from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.decoding.options import DecodingOptions
from retort.evaluation import intervals, score
from retort.evaluation.evaluate import Evaluation
from retort.evaluation.results import (
    add_entries,
    add_result,
    add_streaming_results,
    device_name,
    read_results,
)
from retort.evaluation.streaming import StreamingScore

PROMISED = {
    "system", "recipe", "seed", "split", "steps", "params", "cer", "wer", "train_seconds", "device", "commit",
}  # fmt: skip


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    result = score({"a": "one two", "b": "three"}, {"a": "one two", "b": "tree"}, {"a": "x", "b": "y"})
    return Evaluation("dev", result, intervals(result), [], tmp_path)


def add(path: Path, recipe: Recipe, evaluation: Evaluation, split: str = "dev", steps: int = 7) -> None:
    add_result(path, recipe, replace(evaluation, split=split), steps=steps, params=123, train_seconds=1.26)


def test_an_entry_has_what_was_promised(tmp_path: Path, evaluation: Evaluation) -> None:
    path = tmp_path / "results" / "x.json"
    add(path, Recipe(name="tiny", system="hkd", seed=4), evaluation)
    (entry,) = read_results(path)
    assert entry.keys() >= PROMISED
    assert entry["wer"] == pytest.approx(1 / 3)
    assert entry["cer"] == pytest.approx(1 / 12)
    wanted = {"system": "hkd", "recipe": "tiny", "seed": 4, "split": "dev", "steps": 7, "params": 123}
    assert {key: entry[key] for key in wanted} == wanted
    assert entry["train_seconds"] == 1.3
    bounds = entry["wer_interval"]
    assert isinstance(bounds, list)
    assert bounds[0] <= 1 / 3 <= bounds[1]


def test_the_same_run_replaces_itself_and_others_stay(tmp_path: Path, evaluation: Evaluation) -> None:
    path = tmp_path / "x.json"
    for seed in (1, 2):
        add(path, Recipe(name="tiny", seed=seed), evaluation)
    add(path, Recipe(name="tiny", seed=1), evaluation, split="test")
    add(path, Recipe(name="other", seed=1), evaluation)
    add(path, Recipe(name="tiny", seed=1), evaluation, steps=9)
    keys = [(each["recipe"], each["seed"], each["split"], each["steps"]) for each in read_results(path)]
    assert keys == [
        ("tiny", 2, "dev", 7), ("tiny", 1, "test", 7), ("other", 1, "dev", 7), ("tiny", 1, "dev", 9),
    ]  # fmt: skip


def test_streams_have_an_entry_for_each_chunk(tmp_path: Path, evaluation: Evaluation) -> None:
    path = tmp_path / "x.json"
    recipe = Recipe(name="tiny", system="cif", seed=1)
    add(path, recipe, evaluation)
    for wer in (0.3, 0.2):  # the second replaces the first
        found = [
            StreamingScore(chunk, 0.04 * chunk, 0.1, wer, (0.0, 0.2), (0.1, 0.4), 0.05, None, 0, 2, 0)
            for chunk in (4, 0)
        ]
        add_streaming_results(path, recipe, "dev", found, steps=7, params=123, train_seconds=1.26)
    first, *streams = read_results(path)
    assert "chunk" not in first
    assert [(each["chunk"], each["wer"], each["split"]) for each in streams] == [(4, 0.2, "dev"), (0, 0.2, "dev")]
    assert all(each.keys() >= PROMISED for each in streams)


def test_decoding_with_language_models_is_a_run_of_its_own(tmp_path: Path, evaluation: Evaluation) -> None:
    path = tmp_path / "x.json"
    add(path, Recipe(name="tiny", system="hkd"), evaluation)
    options = DecodingOptions(beam=4, lm="exp/a", lm_weight=0.1, rescore="b", rescore_weight=1.0)
    sizes = {"student": 100, "lm": 20, "rescore": 3}
    for weight in (0.1, 0.2):
        used = replace(options, lm_weight=weight)
        add(path, Recipe(name="tiny", system="hkd"), replace(evaluation, options=used, parameters=sizes))
    first, second = read_results(path)
    assert (first["system"], first["params"], first["decoding"]) == ("hkd", 123, "")
    assert (second["system"], second["params"]) == ("hkd+lm+rescore", 146)
    assert second["decoding"] == "beam4+lm.a+rescore.b"


def test_what_is_there_already_changes_nothing(tmp_path: Path, evaluation: Evaluation) -> None:
    path, gathered = tmp_path / "x.json", tmp_path / "all.json"
    for seed in (1, 2):
        add(path, Recipe(name="tiny", seed=seed), evaluation)
    first, second = read_results(path)
    for entries in ([first], [second], [first], [second, first]):
        add_entries(gathered, entries)
    assert gathered.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '"text"'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, evaluation: Evaluation, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        add(path, Recipe(name="tiny"), evaluation)
    assert "\n" not in str(error.value)
    assert path.read_text() == content


def test_the_file_is_plain_json(tmp_path: Path, evaluation: Evaluation) -> None:
    add(tmp_path / "x.json", Recipe(name="tiny"), evaluation)
    assert isinstance(json.loads((tmp_path / "x.json").read_text()), list)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_the_device_says_how_many_threads() -> None:
    assert device_name("cpu", 1).endswith("CPU, 1 thread")
    assert device_name("cpu", 2).endswith("CPU, 2 threads")
