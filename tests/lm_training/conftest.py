"""Recipes of language models whose texts count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retort.lm.config import LmRecipe, load_lm_recipe


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
