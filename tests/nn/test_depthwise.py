from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retort.nn.cpu_kernels import Depthwise


def pair(dim: int, kernel: int, bias: bool) -> tuple[Depthwise, nn.Conv1d]:
    """Ours and torch's with the same weights; float64."""
    ours = Depthwise(dim, kernel, bias).double()
    plain = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias).double()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def slowly(layer: Depthwise, hidden: Tensor) -> Tensor:
    """One utterance `(T, dim)`, number by number."""
    frames, dim = hidden.shape
    (kernel,) = layer.kernel_size
    result = torch.zeros_like(hidden)
    for frame in range(frames):
        for channel in range(dim):
            if layer.bias is not None:
                result[frame, channel] = layer.bias[channel]
            for place in range(kernel):
                source = frame + place - kernel // 2
                if 0 <= source < frames:
                    result[frame, channel] += layer.weight[channel, 0, place] * hidden[source, channel]
    return result


SHAPES = {
    "batch": st.integers(1, 3),
    "frames": st.integers(1, 12),
    "dim": st.integers(1, 5),
    "kernel": st.sampled_from([1, 3, 5, 31]),
    "bias": st.booleans(),
    "seed": st.integers(0, 10**6),
}


@given(**SHAPES)
@settings(deadline=None)
def test_it_is_its_formula(batch: int, frames: int, dim: int, kernel: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = Depthwise(dim, kernel, bias).double().requires_grad_(False)
    hidden = torch.randn(batch, frames, dim, dtype=torch.float64)
    torch.testing.assert_close(layer(hidden), torch.stack([slowly(layer, each) for each in hidden]))


@given(**SHAPES)
@settings(deadline=None)
def test_it_and_its_gradients_are_those_of_a_convolution_in_groups(
    batch: int, frames: int, dim: int, kernel: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    ours, plain = pair(dim, kernel, bias)
    left = torch.randn(batch, frames, dim, dtype=torch.float64, requires_grad=True)
    right = left.detach().clone().requires_grad_()
    found, expected = ours(left), plain(right.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(expected)
    (found * slope).sum().backward()
    (expected * slope).sum().backward()
    torch.testing.assert_close(left.grad, right.grad)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_gradients() -> None:
    torch.manual_seed(0)
    layer = Depthwise(3, 5).double()
    hidden = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (hidden,))


@pytest.mark.parametrize("frames", [1, 7, 40, 200])
def test_float32_and_bf16_stay_within_rounding(frames: int) -> None:
    torch.manual_seed(0)
    layer = Depthwise(16, 15).double()
    hidden = torch.randn(4, frames, 16, dtype=torch.float64)
    exact = layer(hidden)
    layer, hidden = layer.float(), hidden.float()
    torch.testing.assert_close(layer(hidden).double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)


def test_off_the_cpu_it_has_the_same_shape() -> None:
    hidden = torch.empty(2, 4, 3, device="meta")
    assert Depthwise(3, 5).to("meta")(hidden).shape == hidden.shape


def test_padding_and_batching_change_nothing() -> None:
    torch.manual_seed(0)
    layer = Depthwise(8, 7).double()
    hidden = torch.randn(3, 9, 8, dtype=torch.float64)
    hidden[1, 4:] = 0.0
    torch.testing.assert_close(layer(hidden[1:2, :4]), layer(hidden)[1:2, :4])
    torch.testing.assert_close(layer(hidden[2:]), layer(hidden)[2:])


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel must be odd, not 4"):
        Depthwise(3, 4)
