from __future__ import annotations

import pytest
import torch
from torch import nn

from retort.nn.frontend import Conv2dConfig, Conv2dFrontend


def build(layers: int, bins: int = 16) -> Conv2dFrontend:
    torch.manual_seed(0)
    return Conv2dFrontend(Conv2dConfig(channels=4, layers=layers), bins, dim=8).eval()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("frames", [0, 1, 2, 3, 4, 6, 7, 8, 15, 16, 31])
def test_every_convolution_maps_t_frames_to_half_of_t_minus_one(layers: int, frames: int) -> None:
    expected = frames
    for _ in range(layers):
        expected = max((expected - 1) // 2, 0)
    hidden, lengths = build(layers)(torch.randn(2, 31, 16), torch.tensor([frames, 31]))
    assert lengths.tolist() == [expected, 15 if layers == 1 else 7]
    assert hidden.shape == (2, int(lengths[1]), 8)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("frames", [0, 1, 2, 5])
def test_fewer_frames_than_the_kernel_do_not_fail(layers: int, frames: int) -> None:
    hidden, lengths = build(layers)(torch.randn(1, frames, 16), torch.tensor([frames]))
    assert hidden.shape[1] >= 1
    assert hidden.isfinite().all()
    assert int(lengths) <= hidden.shape[1]


def test_one_layer_is_the_convolution_written_out() -> None:
    frontend = build(1)
    features = torch.randn(1, 9, 16)
    hidden, _ = frontend(features, torch.tensor([9]))
    convolution = frontend.convolutions[0]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    for frame in range(4):
        window = features[0, 2 * frame : 2 * frame + 3]
        columns = torch.stack([window[:, 2 * each : 2 * each + 3].flatten() for each in range(7)])
        maps = (columns @ convolution.weight.flatten(1).T + convolution.bias).relu()  # (7 bins, 4 channels)
        expected = frontend.projection(maps.T.flatten())
        torch.testing.assert_close(hidden[0, frame], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_padding_changes_no_valid_frame(layers: int, garbage: float) -> None:
    frontend = build(layers)
    features = torch.randn(1, 40, 16)
    for length in (7, 8, 9, 10, 33):
        alone, alone_length = frontend(features[:, :length], torch.tensor([length]))
        padded = features.clone()
        padded[:, length:] = garbage
        together, lengths = frontend(padded, torch.tensor([length]))
        assert lengths.tolist() == alone_length.tolist()
        assert together.isfinite().all()
        count = int(lengths)
        torch.testing.assert_close(together[:, :count], alone[:, :count], atol=1e-6, rtol=1e-5)


def test_parameters_of_the_published_front_end() -> None:
    frontend = Conv2dFrontend(Conv2dConfig(), 80, dim=256)
    convolution = sum(each.numel() for each in frontend.convolutions.parameters())
    assert convolution == 1_280
    assert sum(each.numel() for each in frontend.projection.parameters()) == 1_278_208
