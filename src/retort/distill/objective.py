"""The objective of distillation: a list of rows, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.distill.registry import LOSSES
from retort.distill.row import Row, Tally
from retort.distill.symbols import FrameClasses, frame_classes

if TYPE_CHECKING:
    from retort.students.student import Tap, Unit
    from retort.teachers.signal import Signal

Need: TypeAlias = "tuple[str, Unit]"
"""A teacher by its name in the recipe, and the unit of the positions that it is to speak of."""

_UNITS: dict[str, Unit] = {"utterance": "utterance"}


@dataclass(frozen=True)
class ObjectiveResult:
    """The rows' weighted losses on one batch, as sums.

    Over all ranks and accumulation steps, the loss to follow is
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
    """Holds the rows of a recipe and the projections that they train.

    Args:
        rows: of the recipe.
        tap_dims: width of every tap that the student exposes.
        teacher_dims: width of every teacher's vectors, by its name in the recipe.
        tap_units: unit of taps by name; by default the tap `utterance` has one position an utterance, and
            every other tap one position a token, or a frame where its row pools it.
        outputs: of taps of frames that are outputs of the student, the names of their classes. On other such taps a
            row of soft or hard labels has a head of its own.
        symbols: of every teacher whose labels a row lays on frames, its symbols.

    Raises:
        UserError: a row names a tap or a teacher that is not there, or asks for what its tap cannot give.
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
        self.names: list[str] = []
        self.row_needs: list[Need] = []
        seen: Counter[str] = Counter()
        for index, config in enumerate(rows):
            where = f"distill[{index}]"
            _choose(config.tap, tap_dims, "tap", where)
            _choose(config.teacher, teacher_dims, "teacher", where)
            default: Unit = "token" if config.pool == "none" else "frame"
            unit = _pooled(config, units.get(config.tap, default), where)
            if unit != "token" and not config.same_token_negatives:
                raise UserError(
                    f"same_token_negatives is false, but a position of tap '{config.tap}' is not a token",
                    where=where,
                    remedy="Leave same_token_negatives out",
                )
            name = f"{config.tap}.{config.loss}"
            seen[name] += 1
            self.names.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
            self.row_needs.append((config.teacher, unit))
            classes = _classes(config, unit, outputs or {}, symbols or {}, where)
            self.rows.append(Row(config, tap_dims[config.tap], teacher_dims[config.teacher], classes))

    @property
    def needs(self) -> set[Need]:
        """The signals that :meth:`forward` reads."""
        return set(self.row_needs)

    def forward(
        self,
        taps: Mapping[str, Tap],
        signals: Mapping[Need, Signal] | Callable[[str, Unit], Signal],
        tokens: Tensor | None = None,
        step: int = 0,
    ) -> ObjectiveResult:
        """The rows' losses on one batch.

        Args:
            taps: of the student, by name.
            signals: by teacher and unit, or a function of these two, which is called once for each.
            tokens: `(B, U)` int64 ids of the student's tokens; only same-token exclusion reads them.
            step: updates made so far, for the warm-up of the weights.

        Raises:
            ValueError: tap and signal do not belong together (:meth:`Row.forward`), or a tap's unit is not
                the one it was announced with.
        """
        given = signals if isinstance(signals, Mapping) else {need: signals(*need) for need in self.needs}
        device = next((tap.values.device for tap in taps.values()), None)
        sums = {name: torch.zeros((), device=device) for name in ("tokens", "utterances")}
        metrics: dict[str, Tally] = {}
        for name, need, row in zip(self.names, self.row_needs, self.rows):
            assert isinstance(row, Row)
            tap = taps[row.config.tap]
            announced = need[1] if row.pool is None else "frame"
            if tap.unit != announced:
                raise ValueError(f"tap {row.config.tap} has unit {tap.unit}, announced was {announced}")
            try:
                result = row(tap, given[need], tokens)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            added = result.total if result.replaced is None else result.total - result.replaced
            sums[result.normaliser] = sums[result.normaliser] + row.weight_at(step) * added
            metrics[name] = Tally(result.total.detach(), result.count)
            metrics.update({f"{name}.{key}": tally for key, tally in result.metrics.items()})
        return ObjectiveResult(sums["tokens"], sums["utterances"], metrics)


def _pooled(config: RowConfig, unit: Unit, where: str) -> Unit:
    """The unit of the positions that a row compares: those of its tap, or what it makes of frames."""
    if config.pool == "none":
        return unit
    if unit != "frame" or (config.loss in LOSSES and LOSSES[config.loss].compares == "symbols"):
        raise UserError(
            f"pool with {config.loss} on '{config.tap}', a position of which is a {unit}",
            where=where,
            remedy="Pool goes with losses of vectors on frames.N",
        )
    return "token"


def _classes(
    config: RowConfig,
    unit: Unit,
    outputs: Mapping[str, Sequence[str]],
    symbols: Mapping[str, Sequence[str]],
    where: str,
) -> FrameClasses | None:
    """What a row of labels on frames compares; None for other rows."""
    if config.loss not in LOSSES or LOSSES[config.loss].compares != "symbols":
        return None
    if unit != "frame":
        if config.loss == "hard_label":
            raise UserError(
                f"hard_label on '{config.tap}', whose positions are no frames",
                where=where,
                remedy="Lay it on frames.N",
            )
        return None
    classes = frame_classes(config.tap, config.teacher, outputs, symbols)
    if classes is None:
        raise ValueError(f"{where}: the symbols of teacher {config.teacher} are not given")
    if classes.lookup is not None and not (classes.lookup >= 0).any():
        raise UserError(
            f"none of the symbols of teacher '{config.teacher}' is an output of '{config.tap}'",
            where=where,
            remedy="Lay it on frames.N, or choose a teacher over senones",
        )
    if config.interpolate and classes.lookup is None:
        raise UserError(
            f"interpolate on '{config.tap}', which is no output with hard labels",
            where=where,
            remedy=f"Lay it on {', '.join(outputs) or 'an output'}",
        )
    return classes


def _choose(value: str, known: Mapping[str, int], what: str, where: str) -> None:
    if value not in known:
        raise UserError(
            f"{what} is '{value}'", where=where, remedy=f"Choose one of {', '.join(known) or 'none'}"
        )
