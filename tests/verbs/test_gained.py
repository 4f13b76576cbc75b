"""Fine-tuning says of each test set what was gained and lost against the model that it started from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retort.evaluation.scoring import read_score
from retort.report.chapters import changes
from retort.report.document import Table
from retort.report.experiment import open_experiment


def test_each_test_set_before_and_after(
    retort: Callable[..., Any],
    experiment: Path,
    corpus: Path,
    make_corpus: Callable[..., Path],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    new = make_corpus(tmp_path / "new" / "heldout", 4, seed=77)
    settings = (
        f"training.init={experiment}", "tokenizer.kind=init", "training.steps=2", "training.evaluate_steps=2",
        f"data.test=[{corpus}/test,{new}]", f"data.train=[{{source: {corpus}/train, share: 0.5}},{corpus}/validation]",
        "batches.seconds=6",
    )  # fmt: skip
    answer = retort("train", write_recipe("tuned"), *settings)
    assert answer.code == 0, answer.error
    assert answer.out.count("against training.init") == 2
    folder = tmp_path / "exp" / "tuned"
    scores = {path.parent.name: path for path in folder.glob("before/evaluation/*/score.json")}
    assert len(scores) == 2
    opened = open_experiment(folder)
    assert opened.started.keys() == opened.scored.keys() == scores.keys()
    before = {name: path.stat().st_mtime_ns for name, path in scores.items()}
    assert retort("train", write_recipe("tuned"), *settings).code == 0
    assert {name: path.stat().st_mtime_ns for name, path in scores.items()} == before

    (_, table) = changes([opened]).blocks
    assert isinstance(table, Table)
    assert len(table.rows) == 4
    for name, path in scores.items():
        score = read_score(path)
        assert ["tuned", name, "CER", f"{score.cer:.2%}"] in [list(row[:4]) for row in table.rows]
        assert ["tuned", name, "WER", f"{score.wer:.2%}"] in [list(row[:4]) for row in table.rows]
    assert changes([open_experiment(experiment)]).blocks == []
