"""A run that came to its end, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retort.recipe import load_recipe
from retort.training.run import Outcome, train


@pytest.fixture(scope="session")
def finished(recipe_text: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of the recipe `tiny`, whose folder is the only one beside the cache; read only."""
    root = tmp_path_factory.mktemp("finished")
    (root / "tiny.yaml").write_text(recipe_text("tiny"))
    recipe = load_recipe(str(root / "tiny.yaml"))
    return train(recipe, root / "exp", lambda *_: None, lambda *_: None)


@pytest.fixture
def finished_root(finished: Outcome, tmp_path: Path) -> Path:
    """A copy of all that this run wrote, to be gone on with and changed."""
    return shutil.copytree(finished.folder.parent, tmp_path / "exp")
