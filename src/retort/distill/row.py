"""A row of distillation: one loss between one tap of the student and the targets of one teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.common.tally import Tally
from retort.config.distill import LABELS
from retort.config.schema import RowConfig
from retort.distill.bank import VectorBank
from retort.distill.gradients import GradientShare
from retort.distill.pooling import make_pool
from retort.distill.positions import FrameVectors, PositionLosses, Targets
from retort.distill.registry import LOSSES
from retort.distill.symbols import FrameClasses, translated
from retort.nn.masks import valid_mask

# For type checking only: the losses must be importable without students, teachers and their libraries.
if TYPE_CHECKING:
    from retort.students.student import Tap
    from retort.teachers.targets import TeacherTargets


@dataclass(frozen=True)
class RowResult:
    """A row's unweighted loss on one batch.

    Attributes:
        total: scalar; the sum of the losses of positions, or the sum over utterances of the mean over their
            positions.
        count: number of positions, or of utterances with any position, in the sum.
        normaliser: which count over all ranks and accumulation steps the trainer divides `total` by.
        metrics: further metrics of the loss, such as `accuracy`, over positions.
        replaced: scalar, for a row with `interpolate`: the part of the hard losses that `total` replaces.
    """

    total: Tensor
    count: int
    normaliser: Literal["tokens", "utterances"]
    metrics: dict[str, Tally]
    replaced: Tensor | None = None


class Row(nn.Module):
    """Projects a tap to the teacher's width and computes the loss between the two; used only in training.

    With `pool`, the frames of the tap are first pooled to the teacher's positions, and `total` includes a quantity loss
    (`quantity_weight`). Soft labels are compared with the tap itself, which has logits over the student's tokens; the
    metric `spoken` is the fraction of the tap's positions with soft labels. On frames that are no output, the projection
    is an auxiliary head with logits over the teacher's symbols. Computation is in float32 or float64, also under
    autocast.

    Args:
        config: of the row; the objective applies its weight and warm-up, see :meth:`weight_at`.
        tap_dim: dimension of the tap.
        teacher_dim: dimension of the teacher's vectors.
        classes: for soft and hard labels of frames, maps the teacher's symbols to the student's outputs.

    Raises:
        UserError: the loss is unknown, or the tap cannot be pooled.
    """

    lookup: Tensor | None
    mean: Tensor
    scale: Tensor
    static: Tensor

    def __init__(
        self,
        config: RowConfig,
        tap_dim: int,
        teacher_dim: int,
        classes: FrameClasses | None = None,
        vocabulary: int = 0,
    ) -> None:
        super().__init__()
        if config.loss not in LOSSES:
            raise UserError(
                f"loss is '{config.loss}'", where="distill", remedy=f"Choose one of {', '.join(LOSSES)}"
            )
        self.config = config
        self.loss, declared = LOSSES[config.loss]
        self.compares = declared.compares
        self.pool = make_pool(config, tap_dim)
        lookup = classes.lookup if classes is not None else None
        self.register_buffer("lookup", lookup, persistent=False)
        width = teacher_dim if self.compares in ("projected", "frames") else None
        if self.compares in LABELS and classes is not None and lookup is None:
            width = classes.size
        self.projection: nn.Module = nn.Identity() if width is None else nn.Linear(tap_dim, width)
        if config.init == "zero":
            if declared.scale_free:
                raise UserError(
                    f"init is zero, but {config.loss} has no useful gradient at zero",
                    where="distill",
                    remedy="Choose init: ridge or random",
                )
            for parameter in self.projection.parameters():
                nn.init.zeros_(parameter)
        if config.normalise == "standard":
            self.register_buffer("mean", torch.zeros(teacher_dim))
            self.register_buffer("scale", torch.ones(teacher_dim))
        if config.control == "static":
            self.register_buffer("static", torch.zeros(vocabulary, teacher_dim))
        self.bank = VectorBank(config.bank, teacher_dim) if config.bank else None
        self.gradients = GradientShare(config.share, config.weight) if config.share else None

    def weight_at(self, step: int) -> float:
        """The weight after `step` updates: linear from 0 over `warmup_steps`, then `weight`, `interpolate`, or what gives
        the gradient its `share`."""
        warmup, weight = self.config.warmup_steps, self.config.interpolate or self.config.weight
        if self.gradients is not None:
            weight = self.gradients.weight()
        return weight * min(1.0, step / warmup) if warmup > 0 else weight

    def measures_at(self, step: int) -> bool:
        """Whether the gradient's share is measured after `step` updates."""
        return self.gradients is not None and step % self.config.share_steps == 0

    def forward(self, tap: Tap, targets: TeacherTargets | None, tokens: Tensor | None = None) -> RowResult:
        """Compute the loss over the positions that are valid in both the tap and the targets.

        Args:
            tap: `values (B, N, tap_dim)`. For a loss between views, the second half of the batch holds the second views.
            targets: `vectors (B, M, teacher_dim)`; N and M differ only in padding. For frames, in the teacher's
                symbols. With `pool` and for a loss between frames and text, the targets are those of tokens and N is
                the number of frames. None for a loss between views.
            tokens: `(B, U)` int64 ids of the student's tokens, used if the positions are tokens.

        Raises:
            ValueError: tap, targets and tokens do not describe the same positions; nothing is truncated to fit.
        """
        distances = None
        if targets is None:
            valid, selected = _other_views(tap)
        else:
            tap, distances = self._pooled(tap, targets)
            valid, selected = self._selected(tap, targets, tokens)
        with torch.autocast(tap.values.device.type, enabled=False):
            losses = self.loss(self._projected(tap, valid), selected, self.config)
        if self.bank is not None and self.training:
            self.bank.add(selected, gather=self.config.gather_negatives)
        return self._result(tap, valid, losses, distances)

    def _projected(self, tap: Tap, valid: Tensor) -> Tensor | FrameVectors:
        """The projected tap at the `valid (B, n)` positions, or all its frames if these are compared with the text."""
        at_least = torch.promote_types(tap.values.dtype, torch.float32)
        dtype = next((each.dtype for each in self.parameters()), at_least)
        if self.compares == "frames":
            inside = valid_mask(tap.lengths, tap.values.shape[1])
            frames = tap.values.to(dtype).masked_fill(~inside[..., None], 0.0)
            return FrameVectors(self.projection(frames), tap.lengths)
        owner, place = valid.nonzero(as_tuple=True)
        result: Tensor = self.projection(tap.values[owner, place].to(dtype))
        return result

    def _result(self, tap: Tap, valid: Tensor, found: PositionLosses, distances: Tensor | None) -> RowResult:
        """The sums of a batch from the losses of the `valid (B, n)` positions and the distances of :meth:`_pooled`."""
        owner, place = valid.nonzero(as_tuple=True)
        losses = found.values
        metrics = {name: Tally(mark.detach().float().sum(), len(owner)) for name, mark in found.marks.items()}
        positions = int((tap.lengths if tap.present is None else tap.present).sum())
        if self.compares in LABELS:
            metrics["spoken"] = Tally(valid.sum(), positions)
        quantity = losses.new_zeros(len(valid))
        if distances is not None:
            metrics["quantity"] = Tally(distances.detach().sum(), positions)
            quantity = self.config.quantity_weight * distances.to(losses.dtype)
        if self.config.average == "token":
            replaced = None
            if found.taken is not None:
                if tap.hard is None:
                    raise ValueError("the tap has no hard labels to interpolate with")
                replaced = (found.taken * tap.hard[owner, place]).sum()
            return RowResult(losses.sum() + quantity.sum(), len(owner), "tokens", metrics, replaced)
        lengths = valid.sum(1)
        means = quantity.index_add(0, owner, losses) / lengths.clamp_min(1)
        return RowResult(means.sum(), int((lengths > 0).sum()), "utterances", metrics)

    def pairs(
        self, tap: Tap, targets: TeacherTargets, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss compares, before the projection; the arguments are those of :meth:`forward`.

        Returns:
            The tap `(N, tap_dim)` and the targets `(N, teacher_dim)` at the valid positions, and the index `(N,)` of the
            utterance of each.
        """
        valid, selected = self._selected(tap, targets, tokens)
        owner, place = valid.nonzero(as_tuple=True)
        return tap.values[owner, place], selected.vectors, owner

    def _selected(self, tap: Tap, targets: TeacherTargets, tokens: Tensor | None) -> tuple[Tensor, Targets]:
        """`(B, n)` bool, the positions that are compared, and their targets as the loss gets them."""
        valid = targets.valid if self.compares == "frames" else valid_positions(tap, targets)
        if len(valid) != len(tap.values):
            raise ValueError(f"the tap has {len(tap.values)} utterances and the targets {len(valid)}")
        if self.config.valid == "word_end":  # EOS is the last position, and no word
            places = torch.arange(valid.shape[1], device=valid.device)
            valid = valid & (places < target_lengths(targets)[:, None] - 1)
        owner, place = valid.nonzero(as_tuple=True)
        if tap.unit != "token" and self.compares != "frames":
            tokens = None
        elif tokens is not None and (len(tokens) != len(valid) or (place >= tokens.shape[1]).any()):
            shape = tuple(tokens.shape)
            raise ValueError(f"tokens {shape} lack positions of {self.config.tap}, {tuple(valid.shape)}")
        selected = self._in_outputs(
            Targets(
                vectors=targets.vectors[owner, place],
                sources=targets.sources[owner, place],
                tokens=None if tokens is None else tokens[owner, place],
                ids=None if targets.ids is None else targets.ids[owner, place],
                labels=None if targets.labels is None else targets.labels[owner, place],
                owners=owner,
                bank=None if self.bank is None else self.bank.content(),
            )
        )
        if self.config.control == "shuffled":
            there = of_another(owner)
            # Without another utterance nothing is compared.
            alone = there == torch.arange(len(owner), device=owner.device)
            if bool(alone.any()):
                return torch.zeros_like(valid), _none_of(selected)
            assert selected.sources is not None
            selected = selected._replace(vectors=selected.vectors[there], sources=selected.sources[there])
        if self.config.control == "static":
            if selected.tokens is None:
                raise ValueError("control: static needs the token id of every position")
            alike = torch.stack((selected.tokens, selected.tokens + 1), -1)
            selected = selected._replace(vectors=self.static[selected.tokens], sources=alike)
        return valid, selected._replace(vectors=self.normalised(selected.vectors))

    def normalised(self, vectors: Tensor) -> Tensor:
        """Teacher vectors `(..., teacher_dim)` after the row's normalisation."""
        if self.config.normalise == "standard":
            return (vectors - self.mean) / self.scale
        if self.config.normalise == "layer_norm":
            return F.layer_norm(vectors, vectors.shape[-1:])
        return vectors

    def _pooled(self, tap: Tap, targets: TeacherTargets) -> tuple[Tap, Tensor | None]:
        """The tap pooled to the positions of the targets, and `(B,)` distances of the weights' sums from the counts."""
        if self.pool is None or len(tap.values) != len(targets.valid):
            return tap, None
        counts = target_lengths(targets)
        with torch.autocast(tap.values.device.type, enabled=False):
            values, distances = self.pool(tap.values, tap.lengths, counts)
        return replace(tap, values=values, lengths=counts, unit="token", hard=None), distances

    def _in_outputs(self, targets: Targets) -> Targets:
        """The targets with the teacher's symbols mapped to the student's outputs, if the row has a lookup."""
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


def of_another(owners: Tensor) -> Tensor:
    """For each position, a position of the next utterance, cyclically: the one of the same number among its positions.

    Args:
        owners: `(N,)` int64, ascending: utterance of each position.

    Returns:
        `(N,)` int64. If all positions are of one utterance, they are mapped to themselves.
    """
    _, index, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(owners), device=owners.device) - starts[index]
    following = (index + 1) % max(len(counts), 1)
    result: Tensor = starts[following] + rank % counts[following]
    return result


def _other_views(tap: Tap) -> tuple[Tensor, Targets]:
    """`(B, n)` bool, the positions that are in both views of an utterance, and for each the values of the other view.

    Raises:
        ValueError: the two halves of the batch are not views of the same utterances.
    """
    batch, size = tap.values.shape[:2]
    valid = valid_mask(tap.lengths, size)
    if batch % 2 and not valid.any():  # a batch without utterances
        return valid, Targets(tap.values.detach()[valid], None, None)
    if batch % 2 or (tap.lengths != tap.lengths.roll(batch // 2)).any():
        raise ValueError("the halves of the batch are not two views of the same utterances")
    valid = valid if tap.present is None else valid & tap.present
    valid = valid & valid.roll(batch // 2, 0)
    owner, place = valid.nonzero(as_tuple=True)
    other = tap.values.detach()[(owner + batch // 2) % batch, place]
    return valid, Targets(other, None, None, owners=owner)


def _none_of(targets: Targets) -> Targets:
    """The targets without any position; a bank as it is."""
    empty: dict[str, Any] = {
        name: each[:0] for name, each in targets._asdict().items() if isinstance(each, Tensor)
    }
    return targets._replace(**empty)


def target_lengths(targets: TeacherTargets) -> Tensor:
    """`(B,)` int64: number of positions of each utterance in the targets, 0 if it has no valid one.

    The last position of an utterance (EOS, or the only one) is valid whenever any of its positions is.
    """
    places = torch.arange(1, targets.valid.shape[1] + 1, device=targets.valid.device)
    return (targets.valid * places).amax(1) if len(places) else targets.valid.sum(1)


def valid_positions(tap: Tap, targets: TeacherTargets) -> Tensor:
    """Positions within the tap's lengths that have a target and are present in the student.

    The lengths of the tap must equal :func:`target_lengths`; for frames, whose last ones may be silence, they must not
    be smaller.

    Returns:
        `(B, n)` bool, n is the smaller of the two padded sizes.

    Raises:
        ValueError: the number of utterances differs, or an utterance (given by its index in the batch) has another
            number of positions in the tap than in the targets. An utterance without any target is accepted.
    """
    batch, size = tap.values.shape[:2]
    if targets.valid.shape[0] != batch:
        raise ValueError(f"the tap has {batch} utterances and the targets {targets.valid.shape[0]}")
    shorter = min(size, targets.valid.shape[1])
    lengths = target_lengths(targets)
    differ = lengths > tap.lengths if tap.unit == "frame" else (lengths != tap.lengths) & (lengths > 0)
    wrong = differ | (tap.lengths > size)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"utterance {index} of the batch has {int(tap.lengths[index])} positions in the tap "
            f"(padded to {size}), {int(lengths[index])} in the targets"
        )
    valid = targets.valid[:, :shorter]
    return valid if tap.present is None else valid & tap.present[:, :shorter]
