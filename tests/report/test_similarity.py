from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse.cut import Cut
from torch import Tensor

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe, RowConfig, TeacherConfig
from retort.corpora.open_cuts import open_cuts
from retort.report import similarity
from retort.report.experiment import open_experiment
from retort.report.firing import END
from retort.report.similarity import before_and_after
from retort.training import run


@pytest.fixture
def cuts(corpus: Path) -> list[Cut]:
    return list(open_cuts(corpus / "test").cuts)


def test_training_brings_the_vectors_together(experiments: Path, corpus: Path) -> None:
    heard = list(open_cuts(corpus / "train").cuts)
    found = before_and_after(open_experiment(experiments / "taught"), heard)
    size = len(found.labels)
    assert found.utterances == 24
    assert found.labels[-1] == END
    assert "".join(found.labels[:-1]) == heard[0].supervisions[0].text.lower().replace(" ", "")
    for side in (found.before, found.after):
        assert side.matrix.shape == (size, size)
        assert np.abs(side.matrix).max() <= 1 + 1e-5
    assert found.after.own - found.after.other > found.before.own - found.before.other + 0.04
    assert found.after.accuracy > 2 * found.before.accuracy


def test_the_numbers_of_one_utterance_are_those_of_its_matrix(experiments: Path, cuts: list[Cut]) -> None:
    found = before_and_after(open_experiment(experiments / "taught"), cuts[:1])
    matrix = found.after.matrix
    rest = matrix[~np.eye(len(matrix), dtype=bool)]
    assert found.positions == len(matrix)
    assert found.after.own == pytest.approx(np.diag(matrix).mean(), abs=1e-5)
    assert found.after.other == pytest.approx(rest.mean(), abs=1e-5)
    best = (np.diag(matrix) >= matrix.max(1)).mean()
    assert found.after.accuracy == pytest.approx(best)


def test_untrained_is_what_the_run_began_with(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's module as it is when training begins, against the one that the report makes."""
    began: dict[str, Tensor] = {}

    class Begun(Exception):
        pass

    def stop(*arguments: object) -> None:
        module = next(each for each in arguments if isinstance(each, run.TrainingModule))
        began.update({name: value.clone() for name, value in module.state_dict().items()})
        raise Begun

    monkeypatch.setattr(run, "Trainer", stop)
    recipe = load_recipe(
        str(experiments / "taught.yaml"), ["training.steps=120", "training.evaluate_steps=120"]
    )
    with pytest.raises(Begun):
        run.train(recipe, tmp_path, lambda *_: None, lambda *_: None)
    torch.rand(7)
    vocabulary = began["student.ctc.bias"].shape[0]
    student, objective = similarity._untrained(recipe, vocabulary, {"bert": 16})
    made = {f"student.{name}": value for name, value in student.state_dict().items()}
    made |= {f"objective.{name}": value for name, value in objective.state_dict().items()}
    assert made.keys() == began.keys()
    assert all(torch.equal(made[name], began[name]) for name in began)


def test_what_cannot_be_compared(experiments: Path, copies: Path, cuts: list[Cut]) -> None:
    with pytest.raises(UserError, match="no row of distillation uses the fired vectors"):
        before_and_after(open_experiment(experiments / "plain"), cuts)
    folder = copies / "taught" / "checkpoints" / "step-00000120"
    (folder / "objective.safetensors").write_bytes((experiments / "plain.yaml").read_bytes())
    with pytest.raises(UserError, match="projection is missing"):
        before_and_after(open_experiment(copies / "taught"), cuts)
    (folder / "checksums.json").unlink()
    other = copies / "plain" / "checkpoints" / "step-00000120" / "objective.safetensors"
    (folder / "objective.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="of another recipe"):
        before_and_after(open_experiment(copies / "taught"), cuts)


def test_a_row_of_soft_labels_has_no_projection() -> None:
    recipe = Recipe("x", teachers={"lm": TeacherConfig(topk=4), "bert": TeacherConfig()})
    recipe.distill = [RowConfig("tokens", "lm", "soft_label"), RowConfig("acoustic", "bert", "contrastive")]
    assert similarity._widths(recipe, {"rows.1.projection.bias": torch.zeros(16)}) == {"lm": 4, "bert": 16}
    with pytest.raises(UserError, match="another recipe"):
        similarity._widths(recipe, {})
