"""Training of weights that will be stored in fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from retort.common.errors import UserError
from retort.common.weights import pack, rounded, unpack
from retort.decoding.recogniser import load
from retort.engine.stored import as_stored, rounded_weights
from retort.training.run import train


@pytest.mark.parametrize("stored", ["int8", "int4"])
def test_gradients_are_those_of_the_stored_weights_and_the_exact_ones_come_back(stored: str) -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(64, 48), torch.randn(5, 64)
    exact = layer.weight.detach().clone()
    with rounded_weights(layer, stored):
        seen = layer.weight.detach().clone()
        layer(given).square().sum().backward()
    assert torch.equal(layer.weight, exact)
    assert torch.equal(seen, rounded(exact, stored))
    assert not torch.equal(seen, exact)
    twin = nn.Linear(64, 48)
    twin.load_state_dict({"weight": seen, "bias": layer.bias.detach()})
    twin(given).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


def test_the_exact_weights_come_back_after_an_error() -> None:
    layer = nn.Linear(64, 48)
    exact = layer.weight.detach().clone()
    with pytest.raises(ValueError), rounded_weights(layer, "int4"):
        raise ValueError
    assert torch.equal(layer.weight, exact)


def test_what_training_rounds_to_is_near_what_is_stored() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    stored = unpack(pack({"weight": weight}, "int4"))["weight"]
    apart, own = rounded(weight, "int4") - weight, stored - weight
    assert float(own.square().mean()) <= float(apart.square().mean()) <= 1.5 * float(own.square().mean())
    assert not rounded(torch.zeros(8, 256), "int4").any()


def test_stored_weights_are_stored_again_without_loss() -> None:
    torch.manual_seed(0)
    weights = {"weight": torch.randn(64, 256)}
    once = as_stored(weights, "int4")
    torch.testing.assert_close(as_stored(once, "int4")["weight"], once["weight"], rtol=2e-3, atol=1e-4)


def test_a_run_ends_with_weights_that_lose_nothing_when_they_are_stored(read_recipe, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = read_recipe("training.stored=int4", "training.checkpoints=1", "training.steps=3", name="stored")
    outcome = train(recipe, tmp_path, lambda *_: None, lambda *_: None)
    weights = load(outcome.folder).student.state_dict()
    again = as_stored(weights, "int4")
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=2e-2, atol=2e-3)
    with pytest.raises(UserError):
        read_recipe("training.stored=int4", "training.lora.parts=[encoder]")
