from __future__ import annotations

import pytest
import torch

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.distill.objective import Objective
from retort.info.describe import describe
from retort.students.factory import build_student


def test_the_published_sizes() -> None:
    cif, hkd = describe(load_recipe("aishell1/cif")), describe(load_recipe("aishell1/hkd"))
    assert (cif.shipped, cif.training_only) == (47_208_587, 0)
    assert (hkd.shipped, hkd.shipped + hkd.training_only) == (47_208_587, 47_603_339)
    assert sum(hkd.parts.values()) == hkd.shipped


def test_it_counts_what_is_built(read_recipe: object) -> None:
    assert callable(read_recipe)
    rows = "\n".join(
        [
            "teachers: {bert: {dim: 24}}",
            "distill:",
            "  - {tap: acoustic, teacher: bert, loss: contrastive}",
            "  - {tap: linguistic, teacher: bert, loss: regression}",
        ]
    )
    recipe: Recipe = read_recipe("tokenizer.size=13", extra=rows)
    description = describe(recipe)
    student = build_student(recipe.student, 13, recipe.features.bins)
    objective = Objective(recipe.distill, student.tap_dims, {"bert": 24})
    assert description.shipped == sum(each.numel() for each in student.parameters())
    assert description.training_only == sum(each.numel() for each in objective.parameters()) == 2 * 33 * 24
    assert len([line for line in description.lines if line.startswith("row")]) == 2


def test_it_uses_no_memory_for_weights() -> None:
    state = torch.get_rng_state()
    describe(load_recipe("aishell1/hkd"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [("tokenizer.size=null", "tokenizer.size"), ("teachers.bert.dim=null", "teachers.bert.dim")],
)
def test_what_is_not_stated_is_asked_for(override: str, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        describe(load_recipe("aishell1/hkd", [override]))
