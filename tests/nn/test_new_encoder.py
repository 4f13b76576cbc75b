"""An encoder that is one file and one line of the registry: `docs/new_encoder.md`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.keys import keys_of
from retort.config.kinds import ENCODERS, Kind
from retort.config.ranges import WIDEST, number
from retort.config.schema import Recipe
from retort.config.student import EncoderConfig, check_odd
from retort.decoding.recogniser import load
from retort.nn.encoder import LayeredEncoder
from retort.nn.masks import valid_mask
from retort.training.run import train


@dataclass
class ToyConfig(EncoderConfig):
    """Sizes of an encoder of convolutions."""

    kind: str = "toy"
    layers: int = number(2, 0, 100)
    """Number of layers."""
    dim: int = number(16, 1, WIDEST)
    """Width of the encoder's output."""
    kernel: int = number(3, 1, 99)
    """Kernel size in frames; odd."""

    def validate(self, key: str) -> None:
        super().validate(key)
        check_odd(f"{key}.kernel", self.kernel)


class ToyLayer(nn.Module):
    """A convolution over time with a residual connection."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.convolution = nn.Conv1d(config.dim, config.dim, config.kernel, padding=config.kernel // 2)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; padded frames are treated as zeros."""
        mask = valid_mask(lengths, hidden.shape[1])[..., None]
        normed = self.norm(hidden).masked_fill(~mask, 0.0)
        return hidden + self.convolution(normed.transpose(1, 2)).relu().transpose(1, 2)


class ToyEncoder(LayeredEncoder[ToyConfig]):
    """Front end and convolutions."""

    def make_layer(self, config: ToyConfig, number: int) -> ToyLayer:
        return ToyLayer(config)


TOY = ("student.encoder.kind=toy", "student.encoder.dim=24", "student.cif.context_layers=1")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "toy", Kind(f"{__name__}:ToyConfig", f"{__name__}:ToyEncoder", "Convolutions."))


def test_it_is_trained_saved_and_loaded(read_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = read_recipe(*TOY, "training.steps=4", "training.evaluate_steps=4")
    trained = train(recipe, tmp_path, lambda *_: None, lambda *_: None)
    recogniser = load(trained.folder)
    encoder = recogniser.student.encoder
    assert encoder.config == ToyConfig(dim=24)
    hidden, lengths = encoder(torch.randn(2, 50, 40), torch.tensor([50, 31]))
    assert hidden.shape == (2, int(lengths[0]), 24)


def test_its_keys_are_checked_and_documented(read_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="Choose an odd number"):
        read_recipe(*TOY, "student.encoder.kernel=4")
    with pytest.raises(UserError, match=r"of kind toy\. Did you mean 'kernel'"):
        read_recipe(*TOY, "student.encoder.kernels=3")
    assert {key.name for key in keys_of() if key.of == "kind toy"} == {
        f"student.encoder.{name}" for name in ("layers", "dim", "kernel")
    }
