from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.info.cost import GPUS, Cost, Gpu, Scaled, _probe, find_gpu, measure
from retort.info.describe import describe
from retort.students.factory import build_student

FRAMES = 25
"""Of the encoder, a second of these recipes."""

Read = Callable[..., Recipe]


def cost_of(recipe: Recipe) -> Cost:
    return measure(recipe, describe(recipe))


def test_gpus() -> None:
    assert find_gpu("A100-40") == GPUS["A100-40"] == Gpu(40, 312)
    assert find_gpu("48:362.5") == Gpu(48, 362.5)
    for wrong in ("A200", "48", "48:", "0:10", "48:362:1", "a:b"):
        with pytest.raises(UserError, match="such as 48:362") as caught:
            find_gpu(wrong)
        assert "\n" not in str(caught.value)


def test_what_is_there_whatever_the_batch_is_exact(read_recipe: Read) -> None:
    rows = "\nteachers: {bert: {dim: 24}}\ndistill: [{tap: acoustic, teacher: bert, loss: cosine}]"
    recipe = read_recipe("tokenizer.size=13", extra=rows)
    parts = describe(recipe)
    assert parts.training_only == 33 * 24
    cost = measure(recipe, parts)
    assert cost.copy == 4 * parts.shipped
    assert cost.states == 16 * (parts.shipped + parts.training_only)
    recipe.training.freeze = ["encoder"]
    assert measure(recipe, parts).states == cost.states - 12 * parts.parts["encoder"]


def test_of_hybrid_students_nothing_is_foretold() -> None:
    recipe = load_recipe("speechocean762/hybrid_hard")
    with pytest.raises(UserError, match="cannot be estimated"):
        measure(recipe, describe(recipe))


def test_a_larger_batch_is_foretold(read_recipe: Read) -> None:
    recipe = read_recipe("tokenizer.size=13", "student.encoder.positions=relative")
    cost = cost_of(recipe)
    student = build_student(recipe.student, 13, recipe.features.bins).train()
    kept, operations = _probe(student, recipe, 3, 9.0)
    assert cost.operations.of(27, 9) == pytest.approx(operations, rel=0.03)
    # This student has the dropout of a CPU, which keeps four bytes a number.
    assert cost.activations.of(27, 9) == pytest.approx(kept, rel=0.25)
    assert cost.activations.of(27, 9) < kept


def test_the_largest_batch_fills_the_memory() -> None:
    cost = Cost(600, 100, Scaled(50, 2.0, 0.5), Scaled(0, 1, 0))
    assert cost.memory(10, 4) == 600 + 100 + 50 + 10 * (2.0 + 0.5 * 4)
    assert cost.longest_batch(cost.memory(10, 4), 4) == pytest.approx(10)
    assert cost.longest_batch(700, 4) == 0.0


def test_operations_are_those_of_the_matrices(read_recipe: Read) -> None:
    narrow, wide = (
        cost_of(read_recipe("tokenizer.size=13", f"student.encoder.feedforward={size}")) for size in (64, 128)
    )
    matrices = 2 * 2 * 32 * (128 - 64)  # two a feed-forward block, two blocks a layer, one layer
    expected = 2 * matrices * 3 * FRAMES  # forward, and backward for the input and the weight
    assert wide.operations.linear - narrow.operations.linear == pytest.approx(expected, rel=0.03)
    kept = 2 * (128 - 64) * (4 + 4 + 1) * FRAMES  # before SiLU, after it, and a byte for dropout
    assert wide.activations.linear - narrow.activations.linear == pytest.approx(kept, rel=0.03)


def test_fused_attention_keeps_no_weights_but_a_bias_of_positions(read_recipe: Read) -> None:
    rotary, relative = (
        cost_of(read_recipe("tokenizer.size=13", f"student.encoder.positions={kind}")).activations.quadratic
        for kind in ("rotary", "relative")
    )
    weights = 2 * FRAMES**2 * 4  # of two heads, a second of an utterance of a second, in float32
    assert weights < relative - rotary < 1.3 * weights  # on a CPU the weights and their dropout come on top
    assert rotary < weights  # what CTC keeps, frames times tokens


def test_half_precision_keeps_less_and_nothing_is_drawn(read_recipe: Read) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, half = (
            cost_of(read_recipe("tokenizer.size=13", f"training.precision={kind}"))
            for kind in ("fp32", "bf16")
        )
    assert 0.5 < half.activations.of(100, 5) / whole.activations.of(100, 5) < 0.85
    assert half.operations == whole.operations
    assert torch.equal(torch.get_rng_state(), state)
