from __future__ import annotations

import torch
from torch import Tensor, nn

from retort.nn.masks import valid_mask
from retort.nn.normalisation import MaskedBatchNorm


def pair(channels: int) -> tuple[MaskedBatchNorm, nn.BatchNorm1d]:
    """Ours and torch's with the same, not trivial, parameters; float64."""
    torch.manual_seed(1)
    ours, plain = MaskedBatchNorm(channels).double(), nn.BatchNorm1d(channels).double()
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def batch(lengths: list[int], channels: int) -> tuple[Tensor, Tensor]:
    hidden = 3.0 + 2.0 * torch.randn(len(lengths), max(lengths), channels, dtype=torch.float64)
    return hidden, valid_mask(torch.tensor(lengths), max(lengths))


def test_training_equals_torch_on_the_valid_frames() -> None:
    ours, plain = pair(5)
    for lengths in ([3, 7, 1], [4, 4], [0, 6]):
        hidden, mask = batch(lengths, 5)
        hidden.masked_fill_(~mask[..., None], 1e9)
        left, right = hidden.clone().requires_grad_(), hidden[mask].clone().requires_grad_()
        out, expected = ours(left, mask), plain(right)
        torch.testing.assert_close(out[mask], expected)
        assert (out[~mask] == 0).all()

        slope = torch.randn_like(expected)
        (out[mask] * slope).sum().backward()
        (expected * slope).sum().backward()
        assert left.grad is not None
        torch.testing.assert_close(left.grad[mask], right.grad)
        assert (left.grad[~mask] == 0).all()
        torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
        torch.testing.assert_close(ours.bias.grad, plain.bias.grad)
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    assert int(ours.num_batches_tracked or 0) == 3


def test_evaluation_equals_torch_and_learns_nothing() -> None:
    ours, plain = pair(4)
    hidden, mask = batch([5, 2], 4)
    ours(hidden, mask)
    plain(hidden[mask])
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.eval()
    plain.eval()
    torch.testing.assert_close(ours(hidden, mask)[mask], plain(hidden[mask]))
    torch.testing.assert_close(ours.state_dict(), before)


def test_garbage_in_the_padding_changes_nothing() -> None:
    ours, _ = pair(3)
    hidden, mask = batch([2, 6], 3)
    expected = ours(hidden, mask)
    ours.reset_running_stats()
    out = ours(hidden.masked_fill(~mask[..., None], float("nan")), mask)
    torch.testing.assert_close(out, expected)
    assert ours.running_mean is not None
    assert ours.running_mean.isfinite().all()


def test_a_single_frame_and_no_frame_leave_the_statistics_alone() -> None:
    ours, _ = pair(3)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    hidden = torch.randn(2, 4, 3, dtype=torch.float64)
    for lengths in ([1, 0], [0, 0]):
        mask = valid_mask(torch.tensor(lengths), 4)
        out = ours(hidden, mask)
        assert out.isfinite().all()
        assert (out[~mask] == 0).all()
    torch.testing.assert_close(ours.state_dict(), before)


def test_gradients_in_float64() -> None:
    ours, _ = pair(2)
    hidden, mask = batch([3, 1], 2)
    assert torch.autograd.gradcheck(lambda values: ours(values, mask), hidden.requires_grad_())
