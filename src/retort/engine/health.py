"""Checks of a training run: non-finite values stop it, other problems give a warning with a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.schema import LoopConfig
from retort.distill.objective import Need
from retort.nn.cif import NotFiniteError
from retort.teachers.targets import TeacherTargets

STARVED, EXPLODED = 0.2, 3.0
"""Range of the sum of CIF weights per token; outside it CIF has failed to learn the number of tokens."""
ALIKE = 0.98
"""Mean cosine between a teacher's vectors of different sources above which they carry no information."""
SILENT = 0.99
"""Error rate from which the CTC head is considered to output only blanks."""
PATIENCE = 4
"""Number of evaluations in a row after which a problem is reported."""
PROGRESS = 0.005
"""Minimum increase of the accuracy under teacher forcing that counts as progress."""

_LOWER = "Lower training.peak_lr or use training.precision=fp32; the last checkpoint is valid"


class Health:
    """Checks the values that a run logs; every warning is given once.

    Args:
        config: of the training; CIF weights are not checked during its warm-up.
    """

    def __init__(self, config: LoopConfig) -> None:
        self.config = config
        self.told: set[str] = set()
        self.silent = 0
        self.best_accuracy, self.since_gain = 0.0, 0
        self.accuracy: float | None = None

    def state(self) -> dict[str, Any]:
        """The state as a JSON-serialisable dict."""
        return {
            **{name: value for name, value in vars(self).items() if name != "config"},
            "told": sorted(self.told),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of :meth:`state`.

        Raises:
            ValueError: the state is invalid.
        """
        own = self.state()
        kinds = {"told": (list,), "accuracy": (int, float, type(None)), "best_accuracy": (int, float)}
        if state.keys() != own.keys() or not all(
            type(value) in kinds.get(name, (int,)) for name, value in state.items()
        ):
            raise ValueError("its health is not in the format of this version")
        vars(self).update(state, told=set(map(str, state["told"])))

    def check_loss(self, step: int, loss: float, norm: float, tallies: Mapping[str, Any]) -> None:
        """Stop a run whose loss or gradient is not finite, and name the loss.

        Raises:
            UserError: with the step, the loss and the remedy.
        """
        finite = torch.tensor([loss, norm]).isfinite()
        # fp16 overflows occasionally: the gradient scaler then skips the update.
        if finite[0] and (finite[1] or self.config.precision == "fp16"):
            return
        faulty = [name for name, tally in tallies.items() if not torch.isfinite(torch.as_tensor(tally.sum))]
        what = (
            f"the loss {' and '.join(faulty)}" if faulty else "the loss" if not finite[0] else "the gradient"
        )
        raise UserError(
            f"{what} is not finite at step {step}",
            remedy=_LOWER,
        )

    @contextmanager
    def computing(self, step: int, module: nn.Module, what: str) -> Iterator[None]:
        """Stop the run with a clear error if a module fails because weights or values are not finite.

        Raises:
            UserError: with the step, what was computed and the remedy.
        """
        try:
            yield
        except UserError:
            raise
        except (ArithmeticError, ValueError, IndexError, RuntimeError) as error:
            if not isinstance(error, NotFiniteError) and _finite(module):
                raise
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{what} is not finite at step {step} ({reason})", remedy=_LOWER) from None

    def check_weights(self, step: int, module: nn.Module) -> None:
        """Stop before weights that are not finite are evaluated and saved.

        Raises:
            UserError: with the step and the remedy.
        """
        if not _finite(module):
            raise UserError(f"a weight is not finite at step {step}", remedy=_LOWER)

    def check_teachers(self, targets: Mapping[Need, TeacherTargets]) -> list[str]:
        """Warn of a teacher whose vectors are almost equal, so that no loss can distinguish its tokens."""
        return self._once(
            (
                f"alike {name}",
                f"the vectors of teacher {name} are almost equal (mean cosine {cosine:.3f} between different pieces): "
                f"choose other teachers.{name}.layers, or another model",
            )
            for (name, unit), own in targets.items()
            if unit == "token" and own.ids is None and (cosine := mean_cosine(own)) > ALIKE
        )

    def check_logged(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Warn of CIF weights whose logged sum is too small or too large."""
        self.accuracy = values.get("correct", self.accuracy)
        total = values.get("quantity_total", 1.0)
        if step <= self.config.warmup_steps or STARVED <= total <= EXPLODED:
            return []
        return self._once(
            [
                (
                    "quantity",
                    f"the CIF weights sum to {total:.2f} a token at step {step}: lower training.peak_lr, or raise "
                    "student.quantity_weight",
                )
            ]
        )

    def check_evaluated(self, step: int, values: Mapping[str, float], *, decodes: bool = True) -> list[str]:
        """Warn of a CTC head that outputs only blanks, and, if a decoder is trained, of accuracy without progress."""
        self.silent = self.silent + 1 if values.get("validation.ctc_cer", 0.0) >= SILENT else 0
        if self.accuracy is not None and self.accuracy > self.best_accuracy + PROGRESS:
            self.best_accuracy, self.since_gain = self.accuracy, 0
        else:
            self.since_gain += 1
        found = []
        if self.silent >= PATIENCE:
            found.append(
                (
                    "silent",
                    f"the CTC head has output nothing but blanks for {self.silent} evaluations, so the encoder has "
                    "learned nothing yet: train longer, use smaller batches or a training.warm_start, or check the audio",
                )
            )
        if decodes and self.accuracy is not None and self.since_gain >= PATIENCE:
            found.append(
                (
                    f"still {self.best_accuracy:.3f}",
                    f"accuracy has not improved from {self.best_accuracy:.1%} for {self.since_gain} evaluations "
                    f"(step {step}): stop here, or change training.peak_lr, the batch size or the data",
                )
            )
        return self._once(found)

    def _once(self, found: Any) -> list[str]:
        fresh = [(key, text) for key, text in found if key not in self.told]
        self.told.update(key for key, _ in fresh)
        return [text for _, text in fresh]


def _finite(module: nn.Module) -> bool:
    return all(
        bool(each.isfinite().all()) for each in module.state_dict().values() if each.is_floating_point()
    )


def mean_cosine(targets: TeacherTargets) -> float:
    """Mean cosine between the vectors of different sources in a batch; 0 if there are fewer than two."""
    sources, index = targets.sources[targets.valid].unique(dim=0, return_inverse=True)
    if len(sources) < 2:
        return 0.0
    vectors = targets.vectors[targets.valid]
    distinct: Tensor = vectors.new_zeros(len(sources), vectors.shape[-1]).index_copy(0, index, vectors)
    distinct = torch.nn.functional.normalize(distinct, dim=-1)
    count = len(sources)
    return float((distinct.sum(0).square().sum() - count) / (count * (count - 1)))
