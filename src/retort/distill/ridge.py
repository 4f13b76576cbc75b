"""Ridge regression from sums over positions: the initial projection of a row for a student that is already trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties that are tried, relative to the mean variance of the inputs."""


class Line(NamedTuple):
    """An affine function `weight x + bias`.

    Attributes:
        weight: `(E, D)`.
        bias: `(E,)`.
    """

    weight: Tensor
    bias: Tensor


class RidgeSums:
    """Sums over positions in float64 from which ridge regression and its error are computed in closed form.

    Args:
        inputs: D, dimension of the inputs.
        outputs: E, dimension of the targets.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = zeros()
        self.x, self.y = zeros(inputs), zeros(outputs)
        self.xx, self.xy, self.yy = zeros(inputs, inputs), zeros(inputs, outputs), zeros(outputs)

    @torch.no_grad()
    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add the positions `inputs (N, D)` with `targets (N, E)`."""
        x, y = inputs.double(), targets.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum(0)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name; those of several processes may be added."""
        return dict(vars(self))

    def mean(self) -> Line:
        """The best constant function: the mean of the targets."""
        return Line(torch.zeros_like(self.xy.T), self.y / self.count.clamp(min=1))

    def solve(self, penalty: float) -> Line:
        """The function with the least `mean |y - W x - b|^2 + penalty v |W|^2`, v the mean variance of the inputs.

        Hoerl and Kennard, "Ridge regression", Technometrics 1970; the bias is not penalised.
        """
        count = self.count.clamp(min=1)
        x, y = self.x / count, self.y / count
        covariance = self.xx / count - torch.outer(x, x)
        cross = self.xy / count - torch.outer(x, y)
        scale = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        covariance.diagonal().add_(penalty * scale)
        weight = torch.linalg.solve(covariance, cross).T
        return Line(weight, y - weight @ x)

    def error(self, line: Line) -> float:
        """Mean over positions of the squared error, summed over the dimensions of the targets; 0 without positions."""
        weight, bias = line
        predicted = weight @ self.x  # the sum of W x
        squares = (weight @ self.xx * weight).sum() + 2 * bias @ predicted + self.count * bias.square().sum()
        products = (weight.T * self.xy).sum() + bias @ self.y
        total = squares - 2 * products + self.yy.sum()
        return float(total / self.count.clamp(min=1))


class RidgeFit(NamedTuple):
    """The chosen function.

    Attributes:
        line: for the projection.
        penalty: the chosen one of :data:`PENALTIES`; infinite for the mean of the targets.
        explained: share of the variance of the held-out targets that it explains; at least 0.
    """

    line: Line
    penalty: float
    explained: float


def fit_ridge(fitted: RidgeSums, held_out: RidgeSums, penalties: Sequence[float] = PENALTIES) -> RidgeFit:
    """Fit on some positions with the penalty that is best on others, or the mean if no penalty is better.

    Raises:
        ValueError: there are no positions to fit or none held out.
    """
    if not fitted.count or not held_out.count:
        raise ValueError(f"{int(fitted.count)} positions to fit and {int(held_out.count)} held out")
    best, penalty = fitted.mean(), float("inf")
    base = least = held_out.error(best)
    for each in penalties:
        line = fitted.solve(each)
        if (error := held_out.error(line)) < least:
            best, penalty, least = line, each, error
    return RidgeFit(best, penalty, 1 - least / base if base > 0 else 0.0)
