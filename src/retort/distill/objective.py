"""The objective of distillation: the weighted sum of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.common.tally import Tally
from retort.config.distill import LABELS
from retort.config.schema import RowConfig
from retort.distill.registry import LOSSES
from retort.distill.row import Row, RowResult
from retort.distill.symbols import FrameClasses, frame_classes

if TYPE_CHECKING:
    from retort.students.student import Tap, Unit
    from retort.teachers.targets import TargetUnit, TeacherTargets

Need: TypeAlias = "tuple[str, TargetUnit]"
"""Name of a teacher in the recipe, and the unit of the positions of its targets."""
Measure: TypeAlias = Callable[[str, RowResult], tuple[Tensor, Tensor]]
"""Norms of the gradients of a row's unweighted loss and of the student's own losses, on the parameters of a tap."""

_UNITS: dict[str, Unit] = {"utterance": "utterance"}


@dataclass(frozen=True)
class ObjectiveResult:
    """Sums of the rows' weighted losses on one batch.

    Over all ranks and accumulation steps, the loss is
    `sum(token_sum) / number of tokens + sum(utterance_sum) / number of utterances`.

    Attributes:
        token_sum: scalar, weighted sum over the rows with `average: token`; divided by the count of tokens.
        utterance_sum: scalar, the same over the rows with `average: utterance`; divided by the count of
            utterances.
        metrics: `TAP.LOSS` and `TAP.LOSS.METRIC` (`TAP.LOSS.2` for the second such row) to unweighted sums
            and their counts; added over batches and ranks, sum / count is the value to log.
    """

    token_sum: Tensor
    utterance_sum: Tensor
    metrics: dict[str, Tally]


class Objective(nn.Module):
    """The rows of a recipe with their trainable projections.

    Args:
        rows: of the recipe.
        tap_dims: dimension of every tap of the student.
        teacher_dims: dimension of every teacher's vectors, by its name in the recipe.
        tap_units: unit of taps by name; by default the tap `utterance` has one position per utterance, and every
            other tap one per token, or one per frame if its row pools it.
        outputs: class names of the taps of frames that are outputs of the student. On other taps of frames, a row of
            soft or hard labels has its own head.
        symbols: symbols of every teacher whose labels a row uses on frames.

    Raises:
        UserError: a row names an unknown tap or teacher, or its loss does not fit its tap.
    """

    def __init__(
        self,
        rows: Sequence[RowConfig],
        tap_dims: Mapping[str, int],
        teacher_dims: Mapping[str, int],
        tap_units: Mapping[str, Unit] | None = None,
        *,
        outputs: Mapping[str, Sequence[str]] | None = None,
        symbols: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        units = {**_UNITS, **(tap_units or {})}
        self.rows = nn.ModuleList()
        self.names = row_names(rows)
        self.row_needs: list[Need | None] = []
        self._units: list[Unit] = []
        for index, config in enumerate(rows):
            where = f"distill[{index}]"
            _choose(config.tap, tap_dims, "tap", where)
            alone = config.loss in LOSSES and LOSSES[config.loss].compares == "views"
            if not alone:
                _choose(config.teacher, teacher_dims, "teacher", where)
            default: Unit = "token" if config.pool == "none" else "frame"
            unit = _pooled(config, units.get(config.tap, default), where)
            whole = config.loss in LOSSES and LOSSES[config.loss].compares == "frames"
            if unit != "token" and not config.same_token_negatives:
                raise UserError(
                    f"same_token_negatives is false, but the positions of tap '{config.tap}' are not tokens",
                    where=where,
                    remedy="Remove same_token_negatives",
                )
            self._units.append(unit)
            of: TargetUnit = "word" if config.valid == "word_end" else "token" if whole else unit
            self.row_needs.append(None if alone else (config.teacher, of))
            classes = _classes(config, unit, outputs or {}, symbols or {}, where)
            dims = tap_dims[config.tap], 0 if alone else teacher_dims[config.teacher]
            self.rows.append(Row(config, *dims, classes, tap_dims.get("tokens", 0)))

    @property
    def needs(self) -> set[Need]:
        """The teacher targets that :meth:`forward` needs."""
        return {need for need in self.row_needs if need is not None}

    def forward(
        self,
        taps: Mapping[str, Tap],
        targets: Mapping[Need, TeacherTargets] | Callable[[str, TargetUnit], TeacherTargets],
        tokens: Tensor | None = None,
        step: int = 0,
        measure: Measure | None = None,
    ) -> ObjectiveResult:
        """Compute the rows' losses on one batch.

        Args:
            taps: taps of the student, by name.
            targets: teacher targets by teacher and unit, or a function of these two, called once for each.
            tokens: `(B, U)` int64 ids of the student's tokens; used only for same-token exclusion.
            step: number of updates so far, for the warm-up of the weights.
            measure: measures gradients for rows with a `share`; without it their weights stay as they are.

        Raises:
            ValueError: tap and targets do not match (:meth:`Row.forward`), or a tap has another unit than
                `tap_units` declares.
        """
        given = targets if isinstance(targets, Mapping) else {need: targets(*need) for need in self.needs}
        device = next((tap.values.device for tap in taps.values()), None)
        sums = {name: torch.zeros((), device=device) for name in ("tokens", "utterances")}
        metrics: dict[str, Tally] = {}
        for name, need, unit, row in zip(self.names, self.row_needs, self._units, self.rows):
            assert isinstance(row, Row)
            tap = taps[row.config.tap]
            declared = unit if row.pool is None else "frame"
            if tap.unit != declared:
                raise ValueError(f"tap {row.config.tap} has unit {tap.unit}, but was declared as {declared}")
            try:
                result = row(tap, None if need is None else given[need], tokens)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if row.gradients is not None:
                if measure is not None and row.measures_at(step):
                    row.gradients.observe(*measure(row.config.tap, result))
                metrics[f"{name}.weight"] = Tally(torch.tensor(row.weight_at(step), device=device), 1)
            added = result.total if result.replaced is None else result.total - result.replaced
            sums[result.normaliser] = sums[result.normaliser] + row.weight_at(step) * added
            metrics[name] = Tally(result.total.detach(), result.count)
            metrics.update({f"{name}.{key}": tally for key, tally in result.metrics.items()})
        return ObjectiveResult(sums["tokens"], sums["utterances"], metrics)


def row_names(rows: Sequence[RowConfig]) -> list[str]:
    """Names of the rows in logs: `TAP.LOSS`, and `TAP.LOSS.2` for the second such row."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for config in rows:
        name = f"{config.tap}.{config.loss}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return names


def _pooled(config: RowConfig, unit: Unit, where: str) -> Unit:
    """The unit of the positions that a row compares: that of its tap, or tokens if it pools frames."""
    if config.pool == "none":
        return unit
    if unit != "frame" or (config.loss in LOSSES and LOSSES[config.loss].compares in LABELS):
        raise UserError(
            f"pool is set for {config.loss} on '{config.tap}', whose positions are {unit}s",
            where=where,
            remedy="Use pool only with losses of vectors on frames.N",
        )
    return "token"


def _classes(
    config: RowConfig,
    unit: Unit,
    outputs: Mapping[str, Sequence[str]],
    symbols: Mapping[str, Sequence[str]],
    where: str,
) -> FrameClasses | None:
    """The classes of a row with labels on frames; None for other rows."""
    if config.loss not in LOSSES or LOSSES[config.loss].compares not in LABELS:
        return None
    if unit != "frame":
        if LOSSES[config.loss].compares == "labels":
            raise UserError(
                f"{config.loss} is set on '{config.tap}', whose positions are not frames",
                where=where,
                remedy="Set tap: frames.N",
            )
        return None
    classes = frame_classes(config.tap, config.teacher, outputs, symbols)
    if classes is None:
        raise ValueError(f"{where}: the symbols of teacher {config.teacher} are missing")
    if classes.lookup is not None and not (classes.lookup >= 0).any():
        raise UserError(
            f"none of the symbols of teacher '{config.teacher}' is an output of '{config.tap}'",
            where=where,
            remedy="Set tap: frames.N, or choose a teacher over senones",
        )
    if config.interpolate and classes.lookup is None:
        raise UserError(
            f"interpolate is set on '{config.tap}', which is not an output with hard labels",
            where=where,
            remedy=f"Set tap to {', '.join(outputs) or 'an output'}",
        )
    return classes


def _choose(value: str, known: Mapping[str, int], what: str, where: str) -> None:
    if value not in known:
        raise UserError(
            f"unknown {what} '{value}'", where=where, remedy=f"Choose one of {', '.join(known) or 'none'}"
        )
