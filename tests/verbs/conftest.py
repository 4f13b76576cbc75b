from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from answers import Answer, Retort
from retort import cli

MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Say = Callable[..., np.ndarray]


def run_main(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> Answer:
    monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
    capsys.readouterr()
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0
    out, error = capsys.readouterr()
    assert isinstance(code, int)
    return Answer(code, out, error)


@pytest.fixture
def retort(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Retort:
    """`retort(argument, ...)`: the command, run in `tmp_path`; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run_main(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="package")
def experiment(recipe_text: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained by the library for the verbs that only read one."""
    from retort.config.loading import load_recipe
    from retort.training.run import train

    root = tmp_path_factory.mktemp("trained")
    (root / "tiny.yaml").write_text(recipe_text("tiny"))
    recipe = load_recipe(str(root / "tiny.yaml"), ["training.steps=40", "training.evaluate_steps=40"])
    return train(recipe, root, lambda *_: None, lambda *_: None).folder
