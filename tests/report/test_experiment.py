from __future__ import annotations

from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.report.experiment import open_experiment, open_experiments


def test_what_is_there(experiments: Path) -> None:
    found = open_experiment(experiments / "taught")
    assert (found.name, found.recipe.training.steps, found.finished) == ("taught", 120, True)
    assert found.metrics[-1]["step"] == 120
    (scored,) = found.scored.values()
    assert set(scored.texts) == {each.id for each in scored.score.utterances}
    assert found.missing == []
    projections = found.projections()
    assert projections is not None
    assert set(projections) == {
        f"rows.{row}.projection.{part}" for row in (0, 1) for part in ("weight", "bias")
    }
    assert open_experiment(experiments / "taught" / "model").folder == found.folder


def test_names_differ(experiments: Path, copies: Path) -> None:
    folders = [experiments / "plain", copies / "plain", copies / "taught", copies / "plain"]
    names = [each.name for each in open_experiments(folders, Path("exp"))]
    assert names == [f"plain ({folders[0]})", f"plain ({folders[1]})", "taught"]


def test_what_is_missing_is_reported(copies: Path) -> None:
    folder = copies / "plain"
    (folder / "metrics.jsonl").write_text("")
    (folder / "model" / "config.json").unlink()
    (next(folder.glob("evaluation/*")) / "score.json").write_text("{")
    found = open_experiment(folder)
    assert [line.split("(")[0].strip() for line in found.missing if "score.json" not in line] == [
        "no metrics yet",
        "not scored yet",
        "no model yet: training has not finished",
    ]
    assert any("not a score file" in line for line in found.missing)


def test_lines_that_are_broken_or_not_finite(copies: Path) -> None:
    path = copies / "plain" / "metrics.jsonl"
    path.write_text('{"step": 2, "ce": 1.5, "loss": NaN, "word": "x"}\n[]\n{"ce": 1}\n{"step": 4, "c')
    assert open_experiment(copies / "plain").metrics == [{"step": 2.0, "ce": 1.5}]


def test_a_checkpoint_cut_short_gives_nothing(copies: Path) -> None:
    (copies / "taught" / "checkpoints" / "step-00000120" / "objective.safetensors").write_bytes(b"\x08")
    assert open_experiment(copies / "taught").projections() is None


@pytest.mark.parametrize("content", [None, "{", "[]", '{"nosuchkey": 1}'])
def test_no_experiment(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(UserError) as caught:
        open_experiment(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
