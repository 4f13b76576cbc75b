from __future__ import annotations

import pytest
import torch

from retort.nn.cif import WeightEstimator
from retort.nn.masks import valid_mask


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_it_is_the_formula_written_out(activation: str) -> None:
    torch.manual_seed(0)
    estimator = WeightEstimator(6, 3, 0.2, activation).eval()
    hidden = torch.randn(1, 5, 6)
    alphas = estimator(hidden, torch.tensor([5]))
    kernel, bias = estimator.convolution.weight, estimator.convolution.bias
    assert bias is not None
    for frame in range(5):
        mixed = bias.clone()
        for tap in range(3):
            if 0 <= frame + tap - 1 < 5:
                mixed = mixed + kernel[:, :, tap] @ hidden[0, frame + tap - 1]
        if activation == "relu":
            mixed = mixed.clamp(min=0.0)
        expected = (estimator.linear.weight[0] @ mixed + estimator.linear.bias[0]).sigmoid()
        torch.testing.assert_close(alphas[0, frame], expected)


def test_padding_weighs_nothing_and_changes_nothing() -> None:
    estimator = WeightEstimator(6, 3, 0.0).eval()
    lengths = torch.tensor([8, 3, 0])
    hidden = torch.randn(3, 8, 6) * valid_mask(lengths, 8)[..., None]
    alphas = estimator(hidden, lengths)
    assert alphas.shape == (3, 8)
    assert alphas.dtype == torch.float32
    assert ((alphas > 0) == valid_mask(lengths, 8)).all()
    for row, length in enumerate(lengths.tolist()):
        size = max(length, 1)  # the encoder never gives fewer frames
        alone = estimator(hidden[row : row + 1, :size], lengths[row : row + 1])
        torch.testing.assert_close(alphas[row, :size], alone[0], atol=1e-6, rtol=1e-5)


def test_parameters_of_the_published_estimator() -> None:
    assert sum(each.numel() for each in WeightEstimator(256, 3, 0.2).parameters()) == 197_121
