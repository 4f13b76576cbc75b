"""Products with weights in 8 bits: close to those in float32, and the same whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retort.export.quantise import quantise
from retort.export.record import record
from retort.runtime.session import Session

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Products(torch.nn.Module):
    """Two layers of one input, a third after them, and a product of two computed tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 96), torch.nn.Linear(64, 96, bias=False)
        self.last = torch.nn.Linear(96, 33)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.first(x), self.second(x).tanh()
        return self.last((one @ two.transpose(1, 2)).softmax(-1) @ two)


def recorded(path: Path) -> Session:
    torch.manual_seed(0)
    record(Products().eval(), {"x": torch.randn(2, 5, 64)}, ["y"], {"x": [2]}, path, other={"x": torch.randn(3, 4, 64)})
    return Session(path)


def inputs(batch: int) -> np.ndarray:
    rng = np.random.default_rng(batch)
    outliers = np.exp(rng.normal(size=64))
    return (rng.normal(size=(batch, 7, 64)) * outliers).astype(np.float32)


def test_quantised_products_are_close_and_independent_of_the_batch(tmp_path: Path) -> None:
    exact = recorded(tmp_path / "model.onnx")
    size = (tmp_path / "model.onnx").stat().st_size
    quantise(tmp_path / "model.onnx")
    quantised = Session(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < size / 2
    x = inputs(3)
    wanted, found = exact({"x": x})["y"], quantised({"x": x})["y"]
    assert np.abs(found - wanted).mean() < 0.05 * wanted.std()
    x[1:] *= 100.0
    np.testing.assert_allclose(quantised({"x": x})["y"][:1], found[:1], atol=1e-5)
    assert not quantised({"x": np.zeros_like(x)})["y"].std(1).max() > 1e-6
