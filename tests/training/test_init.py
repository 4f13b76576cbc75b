from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.training.run import Outcome, train

ReadRecipe = Callable[..., Recipe]


class TestInit:
    def test_weights_are_taken_and_counted(
        self, finished: Outcome, finished_root: Path, read_recipe: ReadRecipe
    ) -> None:
        reported: dict[str, float] = {}

        def report(step: int, values: Mapping[str, float]) -> None:
            if step == 0:
                reported.update(values)

        recipe = read_recipe(f"training.init={finished.folder}", "student.decoder.dim=48", name="second")
        with pytest.raises(UserError, match=r"output layer .* would be dropped.*--allow new_output"):
            train(recipe, finished_root, lambda *_: None, report)
        recipe.training.allow = ["new_output"]
        train(recipe, finished_root, lambda *_: None, report)
        record = json.loads((finished_root / "second" / "init.json").read_text())
        assert len(record["taken"]) == reported["init.taken"]
        assert len(record["not_taken"]) == reported["init.not_used"]
        assert "decoder.vocabulary.weight" in record["not_taken"]
        recipe.training.allow = []  # what let it begin does not make it another run
        assert train(recipe, finished_root, lambda *_: None, report).before
        assert reported["init.taken"] > 20
        assert reported["init.not_used"] > 5
        assert reported["init.not_used"] == reported["init.fresh"]

    def test_the_student_starts_from_them(
        self, finished: Outcome, finished_root: Path, read_recipe: ReadRecipe,
        start_of: Callable[[Recipe, Path], dict[str, Tensor]],
    ) -> None:  # fmt: skip
        wanted = finished.recogniser.student.state_dict()
        recipe = read_recipe(f"training.init={finished.folder}", "seed=5", name="second")
        found = start_of(recipe, finished_root)
        assert all(torch.equal(found[name], value) for name, value in wanted.items())

    @pytest.mark.parametrize(("kind", "fresh"), [("characters", True), ("init", False)])
    def test_its_tokenizer_is_taken_with_it(
        self,
        finished: Outcome,
        finished_root: Path,
        read_recipe: ReadRecipe,
        corpus: Path,
        kind: str,
        fresh: bool,
    ) -> None:
        reported: dict[str, float] = {}
        recipe = read_recipe(
            f"training.init={finished.folder}", f"tokenizer.kind={kind}", f"data.train=[{corpus}/test]",
            name="second",
        )  # fmt: skip
        if fresh:
            with pytest.raises(UserError, match="its rows belong to other tokens"):
                train(recipe, finished_root, lambda *_: None, lambda *_: None)
            recipe.training.allow = ["new_output"]
        train(recipe, finished_root, lambda *_: None, lambda _, values: reported.update(values))
        own = finished_root / recipe.name / "tokenizer" / "tokenizer.json"
        same = own.read_text() == (finished.folder / "model" / "tokenizer" / "tokenizer.json").read_text()
        assert (reported["init.fresh"] > 0) is fresh
        assert same is not fresh

    @pytest.mark.parametrize("kind", ["characters", "init"])
    def test_nothing_there(self, tmp_path: Path, read_recipe: ReadRecipe, kind: str) -> None:
        recipe = read_recipe(f"training.init={tmp_path / 'nowhere'}", f"tokenizer.kind={kind}")
        with pytest.raises(UserError, match="no trained model here"):
            train(recipe, tmp_path, lambda *_: None, lambda *_: None)
