from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from retort.common.errors import UserError
from retort.common.locks import alone_in
from retort.config.schema import Recipe
from retort.training.prerequisites import train_teachers
from retort.training.run import train
from retort.training.teach import teach

ReadRecipe = Callable[..., Recipe]
LM = """
name: lm/toy
text: [{{source: {folder}/text.txt}}]
held_out: [{folder}/held_out.txt]
normaliser: {{case: lower}}
tokenizer: {{size: 60}}
model: {{layers: 1, dim: 16, heads: 2, feedforward: 32, dropout: 0.0}}
batches: {{pieces: 512, longest: 16}}
training: {{steps: 2, schedule: cosine, warmup_steps: 1, precision: fp32, device: cpu, evaluate_steps: 2}}
"""
TAUGHT = """
teachers: {{bert: {{model: "{model}", recipe: "{recipe}", case: lower}}}}
distill: [{{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}]
"""


@pytest.fixture
def lm(tmp_path: Path, counting: Callable[[int, int], list[str]]) -> Path:
    for name, count, seed in (("text", 40, 0), ("held_out", 4, 1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(counting(count, seed)) + "\n")
    path = tmp_path / "toy.yaml"
    path.write_text(LM.format(folder=tmp_path))
    return path


def taught(model: Path, lm: Path) -> str:
    return TAUGHT.format(model=model, recipe=lm)


def test_a_missing_teacher_is_trained_first(lm: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
    root, stages = tmp_path / "exp", set()
    recipe = read_recipe("training.steps=1", extra=taught(root / "lm" / "toy" / "model", lm))
    train(recipe, root, lambda stage, *_: stages.add(stage), lambda *_: None)
    assert any(stage.startswith("lm/toy: ") for stage in stages)
    made = (root / "lm" / "toy" / "model" / "config.json").stat().st_mtime_ns
    train_teachers(recipe, root, lambda *_: pytest.fail("it is there already"), lambda *_: None)
    assert (root / "lm" / "toy" / "model" / "config.json").stat().st_mtime_ns == made


def test_before_it_reads(lm: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
    root = tmp_path / "exp"
    recipe = read_recipe(extra=taught(root / "lm" / "toy" / "model", lm))
    (done,) = teach(recipe, root, lambda *_: None, lambda *_: None)
    assert done.read > 0


def test_a_recipe_of_another_model(lm: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
    recipe = read_recipe(extra=taught(tmp_path / "elsewhere", lm))
    with pytest.raises(
        UserError, match=r"teachers\.bert\.model is .*elsewhere, which its recipe does not create"
    ):
        train_teachers(recipe, tmp_path / "exp", lambda *_: None, lambda *_: None)


def test_a_teacher_that_nobody_asks_is_not_trained(lm: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
    root = tmp_path / "exp"
    recipe = read_recipe("distill=[]", extra=taught(root / "lm" / "toy" / "model", lm))
    train_teachers(recipe, root, lambda *_: None, lambda *_: None)
    assert not (root / "lm").exists()


def test_one_run_waits_for_the_other(lm: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
    root = tmp_path / "exp"
    model = root / "lm" / "toy" / "model"
    recipe = read_recipe(extra=taught(model, lm))
    second = Thread(target=train_teachers, args=(recipe, root, lambda *_: None, lambda *_: None))
    with alone_in(root / "lm" / "toy"):
        second.start()
        model.mkdir(parents=True)
        second.join(0.2)
        assert second.is_alive()
        (model / "config.json").write_text("{}")
    second.join(60)
    assert [path.name for path in model.iterdir()] == ["config.json"]
