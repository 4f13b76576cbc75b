"""An untrained recogniser, and two experiments to look at: taught by a tiny BERT, and plain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retort.config.schema import Recipe
from retort.decoding.recogniser import Recogniser
from retort.students.factory import build_student
from retort.text.tokenizers import CharacterTokenizer

TAUGHT = """
teachers: {{bert: {{model: {bert}, layers: [1], case: lower}}}}
distill:
  - {{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}
  - {{tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1}}
"""


@pytest.fixture(scope="session")
def experiments(
    recipe_text: Callable[[str], str], tone_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the trained and scored `taught` and `plain`; read only."""
    from retort.config.loading import load_recipe
    from retort.evaluation.evaluate import evaluate
    from retort.training.run import train

    root = tmp_path_factory.mktemp("experiments")
    for name, extra in (("taught", TAUGHT.format(bert=tone_bert)), ("plain", "")):
        (root / f"{name}.yaml").write_text(recipe_text(name) + extra)
        recipe = load_recipe(
            str(root / f"{name}.yaml"), ["training.steps=120", "training.evaluate_steps=120"]
        )
        outcome = train(recipe, root, lambda *_: None, lambda *_: None)
        evaluate(outcome.recogniser, recipe.data.test[0], outcome.folder, lambda *_: None)
    return root


@pytest.fixture
def copies(experiments: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(experiments, tmp_path / "copies")


@pytest.fixture
def recogniser(read_recipe: Callable[..., Recipe]) -> Recogniser:
    """Untrained, of the recipe of the tones."""
    recipe = read_recipe()
    torch.manual_seed(3)
    tokenizer = CharacterTokenizer(list("▁abcdefgh"))
    student = build_student(recipe.student, tokenizer.size, recipe.features.bins)
    return Recogniser(student, tokenizer, recipe.features, recipe.normaliser)
