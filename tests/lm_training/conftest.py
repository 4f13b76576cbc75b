"""Recipes of language models whose texts count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retort.lm.config import LmRecipe, load_lm_recipe

CAUSAL = """
kind: causal
name: toy
text:
  - {{source: {folder}/large.txt}}
  - {{source: {folder}/small.txt, repeat: 2}}
held_out: [{folder}/held_out.txt]
normaliser: {{case: lower}}
tokenizer: {{kind: words, size: 20}}
model: {{layers: 1, dim: 16, heads: 2, feedforward: 32, dropout: 0.0}}
ngram: {{order: 3}}
batches: {{pieces: 256, longest: 16}}
training: {{steps: 12, schedule: cosine, peak_lr: 1.0e-2, warmup_steps: 4, precision: fp32, device: cpu,
            evaluate_steps: 6, log_steps: 3}}
"""


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


@pytest.fixture
def causal_recipe(counting_recipe: Callable[[str], Callable[..., LmRecipe]]) -> Callable[..., LmRecipe]:
    """`causal_recipe(*overrides)`: the recipe of a small causal model, `toy`, that learns to count."""
    return counting_recipe(CAUSAL)
