"""A run that came to its end, made once, and cuts with their features."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lhotse import CutSet
from torch import Tensor

from retort.config.loading import load_recipe
from retort.config.schema import FeatureConfig, Recipe
from retort.corpora.features import store_features
from retort.corpora.open_cuts import open_cuts
from retort.lm.config import LmRecipe, load_lm_recipe
from retort.training.run import Outcome, train
from retort.training.trainer import Trainer


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


@pytest.fixture(scope="session")
def cuts(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    """Training cuts with their features, read only."""
    opened = open_cuts(corpus / "train").cuts
    return store_features(opened, tmp_path_factory.mktemp("features"), FeatureConfig(bins=40))[0]


@pytest.fixture(scope="module")
def manifest(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training cuts with their features; the first and the sixth say the same words."""
    folder = tmp_path_factory.mktemp("features")
    cuts = list(store_features(open_cuts(corpus / "train").cuts, folder, FeatureConfig(bins=40))[0])
    cuts[5].supervisions[0].text = cuts[0].supervisions[0].text
    CutSet.from_cuts(cuts).to_file(folder / "train.jsonl.gz")
    return folder / "train.jsonl.gz"


class Started(Exception):
    """Carries what a run starts from."""


@pytest.fixture
def start_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, Path], dict[str, Tensor]]:
    def stop(trainer: Trainer, report: object) -> None:
        raise Started(trainer.module.student.state_dict())

    def start(recipe: Recipe, root: Path) -> dict[str, Tensor]:
        monkeypatch.setattr(Trainer, "run", stop)
        with pytest.raises(Started) as started:
            train(recipe, root, lambda *_: None, lambda *_: None)
        weights: dict[str, Tensor] = started.value.args[0]
        return weights

    return start


@pytest.fixture
def counting_recipe(
    tmp_path: Path, counting: Callable[[int, int], list[str]]
) -> Callable[[str], Callable[..., LmRecipe]]:
    """`counting_recipe(text)(*overrides)`: a language model's recipe, its texts ways of counting."""

    def write(text: str) -> Callable[..., LmRecipe]:
        for name, count, seed in (("large", 400, 0), ("small", 20, 1), ("held_out", 12, 2)):
            (tmp_path / f"{name}.txt").write_text("\n".join(counting(count, seed)).upper() + "\n")
        path = tmp_path / "toy.yaml"
        path.write_text(text.format(folder=tmp_path))
        return lambda *overrides: load_lm_recipe(str(path), overrides)

    return write
