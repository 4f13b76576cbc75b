"""A chain of two trainings, the second taught, and its release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from retort.release.card import Terms
from retort.release.release import Released, release

TAUGHT = """
teachers: {{bert: {{model: {bert}, layers: [1], case: lower}}}}
distill: [{{tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1, weight: 0.5}}]
"""
TERMS = Terms("Apache-2.0", "en", ["Tones, made for this test."])

Release = Callable[..., Released]


@pytest.fixture(scope="session")
def root(
    recipe_text: Callable[[str], str], tone_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of experiments with `first` and, from its weights and taught, `second`; read only."""
    from retort.config.loading import load_recipe
    from retort.training.run import train

    root = tmp_path_factory.mktemp("experiments")
    steps = ["training.steps=60", "training.evaluate_steps=30", "data.test=[]"]
    for name, extra, more in (
        ("first", "", steps),
        ("second", TAUGHT.format(bert=tone_bert), [*steps[:2], "seed=7", f"training.init={root / 'first'}"]),
    ):
        (root / f"{name}.yaml").write_text(recipe_text(name) + extra)
        recipe = load_recipe(str(root / f"{name}.yaml"), more)
        train(recipe, root, lambda *_: None, lambda *_: None)
    return root


@pytest.fixture(scope="session")
def make_release() -> Release:
    """`make_release(experiment, out, *tests, root, terms=TERMS, stored="float16", compare=())`."""

    def make(
        experiment: Path,
        out: Path,
        *tests: str,
        root: Path,
        terms: Terms = TERMS,
        stored: str = "float16",
        compare: Sequence[Path] = (),
    ) -> Released:
        return release(experiment, out, terms, tests, root, lambda *_: None, stored, compare)

    return make


@pytest.fixture(scope="session")
def released(root: Path, make_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Released:
    """The release of `second`; read only."""
    return make_release(root / "second", tmp_path_factory.mktemp("models") / "tones", root=root)
