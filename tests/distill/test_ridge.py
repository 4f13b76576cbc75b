"""Ridge regression from sums, against the normal equations of all positions at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retort.distill.ridge import Line, RidgeSums, fit_ridge


def positions(count: int, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Inputs far from zero and targets that depend on them, float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 3 + torch.randn(count, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 6)
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return inputs, 2 + inputs @ weight + noise * torch.randn(
        count, 7, generator=generator, dtype=torch.float64
    )


def sums_of(inputs: Tensor, targets: Tensor, parts: int = 1) -> RidgeSums:
    sums = RidgeSums(inputs.shape[1], targets.shape[1])
    for part, wanted in zip(inputs.chunk(parts), targets.chunk(parts)):
        sums.add(part, wanted)
    return sums


def slow_ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Line:
    """Least squares with the penalty as further rows, each target alone."""
    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    scale = x.square().mean()
    rows = torch.cat((x, (penalty * scale * len(x)) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)))
    columns = []
    for column in y.T:
        wanted = torch.cat((column, column.new_zeros(x.shape[1])))
        columns.append(torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0])
    weight = torch.stack(columns)
    return Line(weight, targets.mean(0) - weight @ inputs.mean(0))


@pytest.mark.parametrize("penalty", [1e-3, 0.3, 10.0])
@pytest.mark.parametrize("parts", [1, 4])
def test_the_closed_form_is_least_squares_with_a_penalty(penalty: float, parts: int) -> None:
    inputs, targets = positions(60)
    line, expected = sums_of(inputs, targets, parts).solve(penalty), slow_ridge(inputs, targets, penalty)
    torch.testing.assert_close(line.weight, expected.weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(line.bias, expected.bias, rtol=1e-7, atol=1e-9)


def test_the_error_is_that_of_all_positions() -> None:
    inputs, targets = positions(40)
    sums = sums_of(inputs, targets, 3)
    for line in (sums.solve(0.1), sums.mean()):
        expected = (targets - inputs @ line.weight.T - line.bias).square().sum(1).mean()
        assert sums.error(line) == pytest.approx(float(expected))


def test_the_penalty_is_chosen_on_what_is_held_out_and_never_worse_than_the_mean() -> None:
    related = fit_ridge(sums_of(*positions(60)), sums_of(*positions(20, 1)))
    assert related.explained > 0.99
    assert related.penalty == 1e-3
    inputs, _ = positions(30)
    unrelated = torch.randn(40, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fitted, held_out = sums_of(inputs[:10], unrelated[:10]), sums_of(inputs[10:], unrelated[10:30])
    found = fit_ridge(fitted, held_out)
    assert found.explained >= 0
    assert held_out.error(found.line) <= held_out.error(fitted.mean())
    opposite = fit_ridge(fitted, sums_of(inputs[:10], 2 * unrelated[:10].mean(0) - unrelated[:10]))
    assert opposite.penalty == float("inf")
    assert not opposite.line.weight.any()


def test_without_positions_there_is_no_fit() -> None:
    with pytest.raises(ValueError, match="held out"):
        fit_ridge(sums_of(*positions(5)), RidgeSums(5, 7))
