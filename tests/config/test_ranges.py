from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.config.kinds import inner_parts
from retort.config.loading import load_recipe
from retort.config.ranges import check_ranges, range_of
from retort.config.schema import AlignConfig, Recipe, RowConfig, TrainingConfig
from retort.decoding.options import DecodingOptions
from retort.lm.config import LmRecipe, load_lm_recipe
from retort.sweeps.config import SweepConfig
from retort.teachers.masked_lm import MaskedLMConfig

NUMBERS = (int, float, int | None, float | None, list[int], list[float], dict[str, float])


def number_fields(config: type, above: str = "") -> list[tuple[str, type, str]]:
    """Key, dataclass and name of every number that a configuration takes."""
    found = []
    hints = get_type_hints(config)
    for each in fields(config):
        hint, key = hints[each.name], f"{above}.{each.name}".lstrip(".")
        if hint in NUMBERS:
            found.append((key, config, each.name))
    for name, part in inner_parts(config).items():
        for each in part.all().values():
            found += number_fields(each, f"{above}.{name}".lstrip("."))
    return found


@pytest.mark.parametrize("config", [Recipe, LmRecipe, SweepConfig, DecodingOptions])
def test_every_number_says_what_it_may_be(config: type) -> None:
    assert [key for key, owner, name in number_fields(config) if range_of(owner, name) is None] == []


OUTSIDE = [math.nan, math.inf, -math.inf, -1_000_001, 1e30, 10**400, True, "many"]


def test_no_number_is_out_of_its_range() -> None:
    for schema in (Recipe, LmRecipe):
        for where, owner, name in number_fields(schema):
            if get_type_hints(owner)[name] not in (int, float, int | None) or owner is AlignConfig:
                continue
            for value in OUTSIDE:
                given = {"topk": 10, "loss": "regression"}
                config = owner(**{key: given[key] for key in given if key in owner.__dataclass_fields__})
                setattr(config, name, value)
                with pytest.raises(UserError, match=name) as caught:
                    check_ranges(config, "a.yaml", where.rpartition(".")[0])
                assert str(caught.value).startswith(f"a.yaml: {where} is ")
                assert len(str(caught.value)) < 200


def test_parts_are_checked_by_their_keys() -> None:
    recipe = Recipe(name="a", distill=[RowConfig("acoustic", "t", "cosine", weight=math.nan)])
    with pytest.raises(UserError, match=r"distill\[0\]\.weight is nan"):
        check_ranges(recipe)
    with pytest.raises(UserError, match=r"teachers\.t\.topk is 0"):
        check_ranges(Recipe(name="a", teachers={"t": MaskedLMConfig(topk=0)}))
    with pytest.raises(UserError, match=r"training\.rates"):
        check_ranges(Recipe(name="a", training=TrainingConfig(rates={"encoder": math.inf})))


@pytest.mark.parametrize(
    "override", ["training.steps=.inf", "training.peak_lr=1e999", "training.peak_lr=" + "9" * 400, "seed=1.5"]
)
def test_what_no_field_can_hold(override: str, write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(UserError):
        load_recipe(str(write_recipe()), [override])


@pytest.mark.parametrize(
    "override",
    [
        *("training.steps=0", "training.evaluate_steps=0", "training.log_steps=0", "training.checkpoints=0"),
        *("training.peak_lr=-1", "training.clip=0", "training.betas=[0.9]", "training.betas=[0.9,1.0]"),
        *("batches.seconds=0", "batches.buckets=0", "features.bins=0", "training.threads=0"),
        *("student.encoder.heads=0", "student.encoder.dim=0", "training.accumulation=-1", "seed=-1"),
        *("training.rates={encoder: .nan}", "augment.noise_snr=[20.0, 10.0]", "augment.speeds=[0.0]"),
        *("student.encoder.dropout=1.0", "batches.minimum_seconds=50", "data.spoken.rate=[1, 2]"),
    ],
)
def test_what_no_training_can_have(override: str, write_recipe: Callable[..., Path]) -> None:
    key = override.split("=")[0].split(".")[-1]
    with pytest.raises(UserError, match=key):
        load_recipe(str(write_recipe()), [override])


BAD_NAMES = [
    "../out",
    "a/../../out",
    "/tmp/out",
    "a//b",
    "a/",
    ".",
    "",
    "..",
    "~/x",
    "a\nb",
    "a\x1b[2Jb",
    "x" * 300,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_stays_below_exp(name: str, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "lm.yaml"
    path.write_text(
        "kind: ngram\nname: toy\ntext: [{source: t}]\nheld_out: [h]\ntokenizer: {kind: words, size: 30}\n"
    )
    for load, recipe in ((load_recipe, write_recipe()), (load_lm_recipe, path)):
        with pytest.raises(UserError):
            load(str(recipe), [f'name="{name}"'.replace("\n", "\\n").replace("\x1b", "\\e")])
        assert load(str(recipe), ["name=a/b.c-d [x] 1"]).name == "a/b.c-d [x] 1"


@pytest.mark.parametrize(
    "given",
    [
        *({"beam": 0}, {"beam": -1}, {"beam": 10**30}, {"beam": 2.5}, {"beam": math.nan}, {"beam": True}),
        *({"nbest": 0}, {"lm": "x", "lm_weight": math.nan}, {"lm": "x", "lm_weight": math.inf}),
        *({"length_weight": math.nan}, {"acoustic_scale": -1.0}, {"ctc_weight": 1.5}, {"beam": "wide"}),
        *({"rescore": "x", "beam": 2, "rescore_weight": 1e300}, {"length_weight": -math.inf}),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        DecodingOptions(**given)


def test_numbers_of_numpy_are_numbers() -> None:
    assert DecodingOptions(beam=np.int64(4), ctc_weight=np.float32(0.5)).beam == 4
