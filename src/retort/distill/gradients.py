"""The weight of a row by the share that its gradient has of the gradient of the student's own losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retort.nn.collectives import sum_over_processes

MEMORY = 0.9
"""Weight of the earlier measurements in the running estimate of a norm."""


class GradientShare(nn.Module):
    """Running estimates of the norms of two gradients, saved with the row, and the weight that follows from them.

    Args:
        share: of the norm of the student's own gradient that the row's weighted gradient has.
        fallback: weight as long as one of the gradients is zero.
    """

    norms: Tensor

    def __init__(self, share: float, fallback: float) -> None:
        super().__init__()
        self.share, self.fallback = share, fallback
        self.register_buffer("norms", torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, row: Tensor, own: Tensor) -> None:
        """Include the norms of the row's unweighted gradient and of the student's own; ignored if one is zero or not
        finite. With several processes their squares are added, and all must call this."""
        squares = sum_over_processes(torch.stack((row, own)).double().square().to(self.norms.device))
        measured = squares.sqrt()
        if bool(measured.isfinite().all() and (measured > 0).all()):
            memory = MEMORY if bool(self.norms[0] > 0) else 0.0
            self.norms.mul_(memory).add_((1 - memory) * measured)

    def weight(self) -> float:
        """The weight that gives the row's gradient its share."""
        row, own = self.norms.tolist()
        return self.share * own / row if row > 0 else self.fallback


def gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Norm of the gradient of a scalar `loss`, float32; the graph is kept, and no `grad` is set.

    Parameters that the loss does not depend on count as zero.
    """
    if not loss.requires_grad or not parameters:
        return torch.zeros((), device=loss.device)
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    squares = [each.float().square().sum() for each in gradients if each is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=loss.device)
