"""Weights that are stored in fewer bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.common.errors import UserError
from retort.common.weights import pack, unpack
from retort.decoding.recogniser import Recogniser, load


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(1e-6, 1e3), st.integers(0, 1000))
def test_int8_is_within_half_a_step_of_each_channels_scale(rows: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = size * torch.randn(rows, 2048, generator=generator)
    packed = pack({"w": matrix}, "int8")
    assert packed["w"].dtype == torch.int8
    restored = unpack(packed)["w"]
    step = matrix.abs().amax(1, keepdim=True) / 127
    assert bool(((restored - matrix).abs() <= 0.5001 * step).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_int4_is_better_than_rounding_to_each_groups_largest(rows: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = size * torch.randn(rows, 2048, generator=generator)
    packed = pack({"w": matrix}, "int4")
    assert packed["w"].dtype == torch.uint8
    assert packed["w"].shape == (rows, 1024)
    restored = unpack(packed)["w"]
    step = matrix.view(rows, -1, 32).abs().amax(-1, keepdim=True) / 7
    assert bool(((restored - matrix).view(rows, -1, 32).abs() <= 1.75 * step).all())
    plain = (matrix.view(rows, -1, 32) / step).round() * step
    assert float((restored - matrix).square().sum()) <= float((plain.view(rows, -1) - matrix).square().sum())


def test_packing_again_changes_nothing() -> None:
    weights = {"conv": torch.randn(8, 20, 10), "bias": torch.randn(5000), "small": torch.randn(3, 4)}
    once = unpack(pack(weights, "int8"))
    twice = unpack(pack(once, "int8"))
    assert all(torch.allclose(once[name].float(), twice[name].float(), rtol=1e-6) for name in weights)
    assert once["bias"].dtype == torch.float16
    assert torch.equal(once["small"], weights["small"].half())


def test_a_channel_of_zeros_stays_so() -> None:
    assert not unpack(pack({"w": torch.zeros(4, 512)}, "int8"))["w"].any()


@pytest.mark.parametrize("stored", ["float16", "int8", "int4"])
def test_what_is_not_finite_is_refused(stored: str) -> None:
    matrix = torch.randn(4, 512)
    matrix[1, 2] = float("nan")
    with pytest.raises(UserError):
        pack({"w": matrix}, stored)


def test_int8_without_scales_is_refused() -> None:
    packed = pack({"w": torch.randn(4, 512)}, "int8")
    with pytest.raises(UserError):
        unpack({"w": packed["w"]})
    with pytest.raises(UserError):
        unpack({**packed, "w.scale": packed["w.scale"][:2]})


def test_int4_without_scales_is_refused() -> None:
    packed = pack({"w": torch.randn(4, 512)}, "int4")
    for scales in (None, packed["w.scale"][:2], packed["w.scale"][:, :3], packed["w.scale"][:, 0]):
        weights = {"w": packed["w"]} if scales is None else {"w": packed["w"], "w.scale": scales}
        with pytest.raises(UserError):
            unpack(weights)


def test_a_model_with_int4_weights_is_opened(recogniser: Recogniser, tmp_path: Path) -> None:
    recogniser.save(tmp_path / "int4", stored="int4")
    opened = load(tmp_path / "int4")
    for name, tensor in recogniser.student.state_dict().items():
        assert torch.allclose(opened.student.state_dict()[name], tensor, atol=0.15 * float(tensor.abs().max()) + 1e-6)


def test_a_model_with_int8_weights_is_opened(recogniser: Recogniser, tmp_path: Path) -> None:
    recogniser.save(tmp_path / "int8", stored="int8")
    opened = load(tmp_path / "int8")
    for name, tensor in recogniser.student.state_dict().items():
        assert torch.allclose(opened.student.state_dict()[name], tensor, atol=0.02 * float(tensor.abs().max()) + 1e-6)
