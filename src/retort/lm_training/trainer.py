"""The loop of neural language models, masked or causal: batches of sentences of one length, one loss per target."""

from __future__ import annotations

import itertools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.common.tally import Tally
from retort.engine.loop import BatchT, Loop
from retort.lm.config import LmRecipe
from retort.lm.pieces import Cutter, PieceMix, length_batches
from retort.lm.scoring import LmScore
from retort.lm_training.data import LmText


class Guesses(Protocol):
    """A batch with prediction targets."""

    @property
    def targets(self) -> Tensor:
        """`(M,)` int64 target ids."""


class Learner(ABC, Generic[BatchT]):
    """A kind of language model with its batches and loss; trained by :class:`LmTrainer`.

    Its constructor opens or trains the tokenizer, before any weight is initialised.

    Attributes:
        cutter: tokenises the recipe's text.
    """

    cutter: Cutter

    @abstractmethod
    def __init__(self, recipe: LmRecipe, folder: Path, root: Path, text: LmText) -> None: ...

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the model; random weights are drawn from torch's generator."""

    @abstractmethod
    def batch(self, rows: Sequence[NDArray[np.int64]], seed: int) -> BatchT:
        """A batch of :class:`Guesses` of tokenised sentences; `seed` determines random masks."""

    @abstractmethod
    def logits(self, model: Any, batch: Any) -> Tensor:
        """Logits `(M, V)` at the M targets of the batch."""

    def loss(self, hard: Tensor, logits: Tensor, batch: Any) -> Tensor:
        """The loss that is minimised, summed over the targets: `hard`, their cross-entropy, or with other terms."""
        return hard

    @abstractmethod
    def validate(self, model: Any) -> dict[str, float]:
        """Metrics on the held-out sentences: `ce` in nats per target, which selects checkpoints, and others."""

    @abstractmethod
    def finish(self, model: Any, progress: StageProgress) -> LmScore:
        """Score of the held-out sentences."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write the finished model."""


class _LmModule(nn.Module):
    """The model as `student` of the loop, with an empty objective."""

    def __init__(self, learner: Learner[Any]) -> None:
        super().__init__()
        self.student = learner.build()
        self.objective = nn.Module()
        self._logits = learner.logits

    def forward(self, batch: Any) -> Tensor:
        return self._logits(self.student, batch)


class LmTrainer(Loop[BatchT]):
    """Trains one language model.

    Args:
        recipe: recipe of the model.
        folder: folder of the experiment.
        learner: kind of model that is trained.
        mix: training data.
        accelerator: devices and processes.
    """

    criterion = "ce"

    def __init__(
        self,
        recipe: LmRecipe,
        folder: Path,
        learner: Learner[BatchT],
        mix: PieceMix,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.learner, self.mix = recipe, learner, mix
        torch.manual_seed(recipe.seed)  # here, so that earlier stages do not change the model's weights
        module = _LmModule(learner)
        super().__init__(recipe.training, recipe.seed, folder, module, learner.validate, accelerator)

    def _groups(self) -> Iterator[list[BatchT]]:
        for epoch in itertools.count(self.position.epoch):
            self.position.epoch = epoch
            batches = self._batches(epoch, self.position.batches)
            while group := list(itertools.islice(batches, self.config.accumulation)):
                self.position.batches += len(group)
                yield group
            self.position.batches = 0

    def _batches(self, epoch: int, skip: int) -> Iterator[BatchT]:
        """This process's batches of an epoch, without the first `skip`; all processes have the same number."""
        draw = np.random.default_rng((self.recipe.seed, epoch))
        batches = length_batches(self.mix.lengths, self.mix.epoch, self.recipe.batches.pieces, draw)
        world = self.accelerator.num_processes
        usable = len(batches) // world * world if len(batches) >= world else 0
        if not usable:
            raise UserError(
                f"there are only {len(batches)} batches for {world} processes", remedy="Lower batches.pieces"
            )
        for number in range(self.accelerator.process_index + skip * world, usable, world):
            seed = zlib.crc32(f"{self.recipe.seed} {epoch} {number}".encode())
            yield self.learner.batch([self.mix[int(index)] for index in batches[number]], seed)

    def _counts(self, group: Sequence[Any]) -> list[int]:
        return [sum(len(batch.targets) for batch in group)]

    def _forward(self, batch: Any) -> tuple[list[Tensor], Mapping[str, Tally]]:
        logits, count = self.wrapped(batch), len(batch.targets)
        hard = F.cross_entropy(logits.float(), batch.targets, reduction="sum")
        correct = (logits.detach().argmax(-1) == batch.targets).sum()
        tallies = {"ce": Tally(hard.detach(), count), "correct": Tally(correct, count)}
        return [self.learner.loss(hard, logits, batch)], tallies
