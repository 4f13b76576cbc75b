from __future__ import annotations

import pytest
import torch

from retort.nn.frontend import Conv2dConfig, Conv2dFrontend, FramesConfig, FramesFrontend, make_frontend

BINS, DIM = 5, 7


def build(stride: int) -> FramesFrontend:
    torch.manual_seed(stride)
    return FramesFrontend(FramesConfig(stride=stride), BINS, DIM)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 9, 10])
def test_an_output_frame_covers_its_own_frames_and_one_to_each_side(stride: int, frames: int) -> None:
    frontend = build(stride)
    features = torch.randn(1, frames, BINS)
    hidden, lengths = frontend(features, torch.tensor([frames]))
    count = (frames + stride - 1) // stride
    assert lengths.tolist() == [count]
    assert hidden.shape == (1, count, DIM)
    weight, bias = frontend.convolution.weight, frontend.convolution.bias
    assert bias is not None
    for place in range(count):
        total = bias.clone()
        for tap in range(stride + 2):
            source = place * stride + tap - 1
            if 0 <= source < frames:
                total += weight[..., tap] @ features[0, source]
        total = total.clamp(min=0)
        expected = (total - total.mean()) / (total.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(hidden[0, place], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_padding_changes_no_valid_frame(stride: int, garbage: float) -> None:
    frontend = build(stride)
    features = torch.randn(1, 20, BINS)
    for length in (0, 1, 2, 3, 10, 19):
        alone, count = frontend(features[:, :length], torch.tensor([length]))
        padded = features.clone()
        padded[:, length:] = garbage
        together, lengths = frontend(padded, torch.tensor([length]))
        assert lengths.tolist() == count.tolist()
        assert together.isfinite().all()
        torch.testing.assert_close(together[:, : int(count)], alone[:, : int(count)])
        assert alone.shape[1] >= 1


def test_the_kind_is_chosen_by_name() -> None:
    assert isinstance(make_frontend(Conv2dConfig(), BINS, DIM), Conv2dFrontend)
    frontend = make_frontend(FramesConfig(stride=3), BINS, DIM)
    assert isinstance(frontend, FramesFrontend)
    assert frontend.subsampling == 3
    assert make_frontend(Conv2dConfig(layers=2), 16, DIM).subsampling == 4
