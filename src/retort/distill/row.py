"""A row of distillation: one tap of the student learns one signal of a teacher through one loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from retort.config import RowConfig
from retort.distill.contrastive import contrastive_row
from retort.distill.cosine import cosine_row
from retort.distill.positions import RowLoss, Targets
from retort.distill.regression import regression_row
from retort.distill.soft_label import soft_label_row
from retort.errors import UserError

# For the checker only: the losses must not drag students, teachers and their libraries into other toolkits.
if TYPE_CHECKING:
    from retort.students.taps import Tap
    from retort.teachers.signal import Signal

LOSSES: dict[str, RowLoss] = {
    "contrastive": contrastive_row,
    "regression": regression_row,
    "cosine": cosine_row,
    "soft_label": soft_label_row,
}
"""What `loss:` of a row may be. A new method is a file with its loss, a line here and in `ROW_CHOICES`."""


class Tally(NamedTuple):
    """A logged value: its scalar `sum`, without gradient, over `count`; both add up over batches."""

    sum: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks for here


@dataclass(frozen=True)
class RowResult:
    """A row's unweighted loss on one batch.

    Attributes:
        total: scalar; the sum over positions of their losses, or over utterances of the means over their
            positions.
        count: how many positions, or utterances with any position, were summed.
        normaliser: the count over all ranks and accumulation steps by which the trainer divides `total`.
        metrics: what the loss logs beside itself, such as `accuracy`, over positions.
    """

    total: Tensor
    count: int
    normaliser: Literal["tokens", "utterances"]
    metrics: dict[str, Tally]


class Row(nn.Module):
    """Projects a tap to the teacher's width and compares the two; lives in training only.

    Soft labels are compared with the tap itself, logits over the student's tokens, and log `spoken`: the share of
    the tap's positions of which the teacher says something. Everything here is computed in float32, whatever autocast
    says.

    Args:
        config: of the row; its weight and warm-up are the objective's affair, see :meth:`weight_at`.
        tap_dim: D of the tap.
        teacher_dim: D of the teacher's vectors.

    Raises:
        UserError: no such loss.
    """

    def __init__(self, config: RowConfig, tap_dim: int, teacher_dim: int) -> None:
        super().__init__()
        if config.loss not in LOSSES:
            raise UserError(
                f"loss is '{config.loss}'", where="distill", remedy=f"Choose one of {', '.join(LOSSES)}"
            )
        self.config = config
        self.loss = LOSSES[config.loss]
        soft = config.loss == "soft_label"
        self.projection: nn.Module = nn.Identity() if soft else nn.Linear(tap_dim, teacher_dim)

    def weight_at(self, step: int) -> float:
        """The weight after `step` updates: linear from 0 over `warmup_steps`, then `weight`."""
        warmup = self.config.warmup_steps
        return self.config.weight * min(1.0, step / warmup) if warmup > 0 else self.config.weight

    def forward(self, tap: Tap, signal: Signal, tokens: Tensor | None = None) -> RowResult:
        """The loss over the positions that are valid in the tap and in the signal.

        Args:
            tap: `values (B, N, tap_dim)`.
            signal: `vectors (B, M, teacher_dim)`; N and M differ by padding only.
            tokens: `(B, U)` int64 ids of the student's tokens, read where the tap's unit is `token`.

        Raises:
            ValueError: tap, signal and tokens do not describe the same positions. What the batch is made of
                has gone wrong; nothing is ever cut to fit.
        """
        valid = valid_positions(tap, signal)
        owner, place = valid.nonzero(as_tuple=True)
        if tap.unit != "token":
            tokens = None
        elif tokens is not None and (len(tokens) != len(valid) or (place >= tokens.shape[1]).any()):
            shape = tuple(tokens.shape)
            raise ValueError(f"tokens {shape} leave out positions of {self.config.tap}, {tuple(valid.shape)}")
        targets = Targets(
            vectors=signal.vectors[owner, place],
            sources=signal.sources[owner, place],
            tokens=None if tokens is None else tokens[owner, place],
            ids=None if signal.ids is None else signal.ids[owner, place],
        )
        with torch.autocast(tap.values.device.type, enabled=False):
            dtype = next((each.dtype for each in self.parameters()), torch.float32)
            student = self.projection(tap.values[owner, place].to(dtype))
            losses, marks = self.loss(student, targets, self.config)
        metrics = {name: Tally(mark.detach().float().sum(), len(owner)) for name, mark in marks.items()}
        if self.config.loss == "soft_label":
            metrics["spoken"] = Tally(valid.sum(), int(tap.lengths.sum()))
        if self.config.average == "token":
            return RowResult(losses.sum(), len(owner), "tokens", metrics)
        lengths = valid.sum(1)
        means = losses.new_zeros(len(lengths)).index_add(0, owner, losses) / lengths.clamp_min(1)
        return RowResult(means.sum(), int((lengths > 0).sum()), "utterances", metrics)


def valid_positions(tap: Tap, signal: Signal) -> Tensor:
    """Positions inside the tap's lengths of which the teacher speaks.

    The last position of an utterance (EOS, or the one of a whole utterance) has a teacher vector whenever any
    of its positions has one; where it lies says how many positions the signal has.

    Returns:
        `(B, n)` bool, n the shorter of the two padded sizes.

    Raises:
        ValueError: another number of utterances, or an utterance (by its index in the batch) that has not as
            many positions in the tap as in the signal. One of which the teacher says nothing passes.
    """
    batch, size = tap.values.shape[:2]
    if signal.valid.shape[0] != batch:
        raise ValueError(f"the tap has {batch} utterances and the signal {signal.valid.shape[0]}")
    shorter = min(size, signal.valid.shape[1])
    places = torch.arange(1, signal.valid.shape[1] + 1, device=signal.valid.device)
    spoken = (signal.valid * places).amax(1) if len(places) else torch.zeros_like(tap.lengths)
    wrong = (spoken != tap.lengths) & (spoken > 0) | (tap.lengths > size)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"utterance {index} of the batch has {int(tap.lengths[index])} positions in the tap "
            f"(padded to {size}), {int(spoken[index])} in the signal"
        )
    return signal.valid[:, :shorter]
