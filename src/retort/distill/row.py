"""A row of distillation: one tap of the student learns one signal of a teacher through one loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.distill.pooling import make_pool
from retort.distill.positions import Targets
from retort.distill.registry import LOSSES
from retort.distill.symbols import FrameClasses, translated

# For the checker only: the losses must not drag students, teachers and their libraries into other toolkits.
if TYPE_CHECKING:
    from retort.students.student import Tap
    from retort.teachers.signal import Signal


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
        replaced: scalar, of a row with `interpolate`: the hard losses in whose place `total` comes, position by
            position.
    """

    total: Tensor
    count: int
    normaliser: Literal["tokens", "utterances"]
    metrics: dict[str, Tally]
    replaced: Tensor | None = None


class Row(nn.Module):
    """Projects a tap to the teacher's width and compares the two; lives in training only.

    With `pool` the frames of the tap become positions of the teacher first, and a loss of how many they would be by
    themselves is in `total` (`quantity_weight`). Soft labels are compared with the tap itself, logits over the student's
    tokens, and log `spoken`: the share of the tap's positions of which the teacher says something. On frames that are
    no output the projection is an auxiliary head: logits over the teacher's own symbols. Everything here is computed in
    float32 or better, whatever autocast says.

    Args:
        config: of the row; its weight and warm-up are the objective's affair, see :meth:`weight_at`.
        tap_dim: D of the tap.
        teacher_dim: D of the teacher's vectors.
        classes: of soft and hard labels of frames, what the teacher's symbols are to the student.

    Raises:
        UserError: no such loss, or a tap that cannot be pooled.
    """

    lookup: Tensor | None

    def __init__(
        self, config: RowConfig, tap_dim: int, teacher_dim: int, classes: FrameClasses | None = None
    ) -> None:
        super().__init__()
        if config.loss not in LOSSES:
            raise UserError(
                f"loss is '{config.loss}'", where="distill", remedy=f"Choose one of {', '.join(LOSSES)}"
            )
        self.config = config
        self.loss, self.compares = LOSSES[config.loss]
        self.pool = make_pool(config, tap_dim)
        lookup = classes.lookup if classes is not None else None
        self.register_buffer("lookup", lookup, persistent=False)
        width = teacher_dim if self.compares == "projected" else None
        if self.compares == "symbols" and classes is not None and lookup is None:
            width = classes.size
        self.projection: nn.Module = nn.Identity() if width is None else nn.Linear(tap_dim, width)

    def weight_at(self, step: int) -> float:
        """The weight after `step` updates: linear from 0 over `warmup_steps`, then `weight`, or `interpolate`."""
        warmup, weight = self.config.warmup_steps, self.config.interpolate or self.config.weight
        return weight * min(1.0, step / warmup) if warmup > 0 else weight

    def forward(self, tap: Tap, signal: Signal, tokens: Tensor | None = None) -> RowResult:
        """The loss over the positions that are valid in the tap and in the signal.

        Args:
            tap: `values (B, N, tap_dim)`.
            signal: `vectors (B, M, teacher_dim)`; N and M differ by padding only. Of frames, in the teacher's symbols;
                of frames that are pooled, of tokens, and N is the frames'.
            tokens: `(B, U)` int64 ids of the student's tokens, read where the positions are tokens.

        Raises:
            ValueError: tap, signal and tokens do not describe the same positions. What the batch is made of
                has gone wrong; nothing is ever cut to fit.
        """
        tap, distances = self._pooled(tap, signal)
        valid = valid_positions(tap, signal)
        owner, place = valid.nonzero(as_tuple=True)
        if tap.unit != "token":
            tokens = None
        elif tokens is not None and (len(tokens) != len(valid) or (place >= tokens.shape[1]).any()):
            shape = tuple(tokens.shape)
            raise ValueError(f"tokens {shape} leave out positions of {self.config.tap}, {tuple(valid.shape)}")
        targets = self._in_outputs(
            Targets(
                vectors=signal.vectors[owner, place],
                sources=signal.sources[owner, place],
                tokens=None if tokens is None else tokens[owner, place],
                ids=None if signal.ids is None else signal.ids[owner, place],
                labels=None if signal.labels is None else signal.labels[owner, place],
                owners=owner,
            )
        )
        with torch.autocast(tap.values.device.type, enabled=False):
            at_least = torch.promote_types(tap.values.dtype, torch.float32)
            dtype = next((each.dtype for each in self.parameters()), at_least)
            student = self.projection(tap.values[owner, place].to(dtype))
            losses, marks, taken = self.loss(student, targets, self.config)
        metrics = {name: Tally(mark.detach().float().sum(), len(owner)) for name, mark in marks.items()}
        positions = int((tap.lengths if tap.present is None else tap.present).sum())
        if self.compares == "symbols":
            metrics["spoken"] = Tally(valid.sum(), positions)
        beside = losses.new_zeros(len(valid))
        if distances is not None:
            metrics["quantity"] = Tally(distances.detach().sum(), positions)
            beside = self.config.quantity_weight * distances.to(losses.dtype)
        if self.config.average == "token":
            replaced = None
            if taken is not None:
                if tap.hard is None:
                    raise ValueError("the tap has no hard labels to be interpolated with")
                replaced = (taken * tap.hard[owner, place]).sum()
            return RowResult(losses.sum() + beside.sum(), len(owner), "tokens", metrics, replaced)
        lengths = valid.sum(1)
        means = beside.index_add(0, owner, losses) / lengths.clamp_min(1)
        return RowResult(means.sum(), int((lengths > 0).sum()), "utterances", metrics)

    def _pooled(self, tap: Tap, signal: Signal) -> tuple[Tap, Tensor | None]:
        """The tap at the positions of the signal, and `(B,)`: how far a pool's weights are from their number."""
        if self.pool is None or len(tap.values) != len(signal.valid):
            return tap, None
        counts = said_positions(signal)
        with torch.autocast(tap.values.device.type, enabled=False):
            values, distances = self.pool(tap.values, tap.lengths, counts)
        return replace(tap, values=values, lengths=counts, unit="token", hard=None), distances

    def _in_outputs(self, targets: Targets) -> Targets:
        """The targets in the student's outputs, where the teacher has symbols of its own for them."""
        if self.lookup is None:
            return targets
        if targets.ids is not None:
            ids, probs = translated(self.lookup, targets.ids, targets.vectors)
            targets = targets._replace(ids=ids, vectors=probs)
        if targets.labels is not None:
            known = targets.labels >= 0
            labels = self.lookup[targets.labels.clamp(min=0)].where(known, targets.labels)
            targets = targets._replace(labels=labels)
        return targets


def said_positions(signal: Signal) -> Tensor:
    """`(B,)` int64: how many positions the signal has of each utterance, 0 where it says nothing of any.

    The last one of an utterance (EOS, or the one of a whole utterance) has a teacher vector whenever any of them has.
    """
    places = torch.arange(1, signal.valid.shape[1] + 1, device=signal.valid.device)
    return (signal.valid * places).amax(1) if len(places) else signal.valid.sum(1)


def valid_positions(tap: Tap, signal: Signal) -> Tensor:
    """Positions inside the tap's lengths of which the teacher speaks.

    The tap has as many as :func:`said_positions`. Of frames, whose last ones may be silent, none may lie behind the tap's.
    Positions at which the student has nothing are left out.

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
    spoken = said_positions(signal)
    apart = spoken > tap.lengths if tap.unit == "frame" else (spoken != tap.lengths) & (spoken > 0)
    wrong = apart | (tap.lengths > size)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"utterance {index} of the batch has {int(tap.lengths[index])} positions in the tap "
            f"(padded to {size}), {int(spoken[index])} in the signal"
        )
    valid = signal.valid[:, :shorter]
    return valid if tap.present is None else valid & tap.present[:, :shorter]
