"""The values of the packaged recipes, compared with the file `snapshots/recipes.json`.

A change of a recipe, of a default or of the resolution of recipes is visible as a change of that file. Renew it with
`PYTHONPATH=src python tests/config/test_snapshots.py`, and read its difference before it is committed.
The descriptions of the recipes are tested here as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from retort.config.layers import overlay_names
from retort.config.loading import OTHER_KINDS, load_recipe, recipe_names
from retort.config.schema import Recipe
from retort.distill import LOSSES
from retort.info.describe import describe
from retort.lm.config import load_lm_recipe

FILE = Path(__file__).parent / "snapshots" / "recipes.json"
RECOGNISERS = [name for name in recipe_names() if not name.startswith(tuple(OTHER_KINDS))]
LANGUAGE_MODELS = [name for name in recipe_names() if name.startswith("lm/")]
SHORT = "speechocean762/cif +curriculum/short"
COMBINATIONS = [
    *(f"{SHORT} +encoder/{encoder}" for encoder in ("branchformer", "e_branchformer", "zipformer")),
    *(f"speechocean762/{stage} +curriculum/short +encoder/zipformer" for stage in ("ctc", "pieces", "warm")),
    f"{SHORT} +family/attention +encoder/zipformer +distill/bert_soft",
    "speechocean762/cif +family/ctc +distill/pooled_attention",
    "speechocean762/cif +family/transducer +distill/deng_cif",
    "speechocean762/cif +family/paraformer +distill/hkd",
    "speechocean762/cif +distill/pooled_cif",
    "speechocean762/hybrid_hard +distill/hard_units",
    "commonvoice_zh/cif +distill/acd +distill/lrd",
    "english/cif_bpe +distill/transport +distill/consistency",
    "english/cif +distill/token_consistency",
    "english/cif +start/frozen +distill/recogniser",
    "english/cif +start/frozen",
    "english/cif +text/english",
    "english/cif +text/internal_lm",
    "mandarin/cif +start/frozen_base",
    "whisper/plain +start/frozen_base",
    "mandarin/cif +text/mandarin",
]
ELSEWHERE = {"distill/interpolation", "distill/phone", "distill/senone", "distill/subword"}
ELSEWHERE |= {"distill/whisper_acd", "distill/whisper_lrd", "start/english", "start/mandarin"}
"""Overlays of variants."""


def compact(config: Any) -> Any:
    """The values that differ from the defaults of their kind, and the kinds."""
    if isinstance(config, list):
        return [compact(each) for each in config]
    if isinstance(config, dict):
        return {name: compact(each) for name, each in config.items()}
    if not is_dataclass(config):
        return config
    found = {}
    for each in fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name == "kind" or value != default:
            found[each.name] = compact(value)
    return found


def load(name: str) -> Any:
    return load_lm_recipe(name) if name.startswith("lm/") else load_recipe(name)


def snapshot() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


SAVED = snapshot() if FILE.is_file() else {}


def test_the_snapshots_are_of_all_recipes_and_overlays() -> None:
    assert list(SAVED) == [*RECOGNISERS, *LANGUAGE_MODELS, *COMBINATIONS]
    used = {overlay for name in COMBINATIONS for overlay in name.split(" +")[1:]}
    assert used | ELSEWHERE == set(overlay_names())


def test_no_name_is_given_twice() -> None:
    folder = Path(str(resources.files("retort") / "recipes"))
    names = []
    for path in folder.rglob("*.yaml"):
        if "overlays" not in path.relative_to(folder).parts:
            content = OmegaConf.load(path)
            own = [path.stem, *content.get("stages", {}), *content.get("variants", {})]
            names += [f"{path.parent.relative_to(folder)}/{name}" for name in own]
    assert sorted(names) == recipe_names()


@pytest.mark.parametrize("name", [*RECOGNISERS, *COMBINATIONS])
def test_a_recogniser_has_the_values_it_had(name: str, resolved: Callable[[str], Recipe]) -> None:
    assert compact(resolved(name)) == SAVED[name]


@pytest.mark.parametrize("name", RECOGNISERS)
def test_a_recogniser_can_be_described(name: str, resolved: Callable[[str], Recipe]) -> None:
    """In this file, since recipes are resolved once per file in tests that run in parallel."""
    recipe = resolved(name)
    assert recipe.name == name
    # These counts depend on the data and are not in the recipe.
    size = 30 if recipe.tokenizer.size is None else recipe.tokenizer.size
    teachers = {
        key: replace(each, symbols=30)
        if "symbols" in each.__dataclass_fields__ and each.topk and not each.symbols
        else each
        for key, each in recipe.teachers.items()
    }
    described = describe(replace(recipe, tokenizer=replace(recipe.tokenizer, size=size), teachers=teachers))
    assert described.shipped > 0
    assert (described.training_only > 0) == any(
        LOSSES[row.loss].compares == "projected" or row.tap.startswith("frames.") for row in recipe.distill
    )
    assert sum(described.parts.values()) == described.shipped


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_has_the_values_it_had(name: str) -> None:
    assert compact(load_lm_recipe(name)) == SAVED[name]


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    lines = [
        f"{json.dumps(name)}: {json.dumps(compact(load(name)), ensure_ascii=False)}"
        for name in (*RECOGNISERS, *LANGUAGE_MODELS, *COMBINATIONS)
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
