"""The training loop of a student: batches of cuts and their losses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from lhotse import CutSet
from torch import Tensor

from retort.common.errors import UserError
from retort.common.tally import Tally
from retort.config.schema import Recipe
from retort.corpora.cuts import Rejected, write_rejected
from retort.engine.loop import Loop
from retort.engine.parameters import freeze, parameter_groups
from retort.nn.lora import merge_lora
from retort.teachers.teacher import Teacher
from retort.training.batches import Batch, UtteranceDataset, epoch_batches, make_sampler
from retort.training.lora import add_lora
from retort.training.module import TrainingModule, read_targets
from retort.training.shares import Group

REJECTED = "rejected.tsv"
"""File of an experiment: unusable training and validation utterances, with the reason."""


class Trainer(Loop[Batch]):
    """Trains one student.

    Args:
        recipe: recipe of the run.
        folder: folder of the experiment; checkpoints and `metrics.jsonl` go there.
        module: student and objective.
        teachers: by name; frozen and not part of the module.
        dataset: turns cuts into batches.
        cuts: training cuts.
        validate: free-running error rates of a student; the one named by `criterion` selects checkpoints.
        accelerator: devices and processes.
        rejected: utterances that were rejected before training; they are listed with those that
            are rejected during training.
        groups: the cuts by share of each batch, if `data.train` has shares.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        module: TrainingModule,
        teachers: Mapping[str, Teacher],
        dataset: UtteranceDataset,
        cuts: CutSet,
        validate: Callable[[Any], dict[str, float]],
        accelerator: Accelerator,
        rejected: Sequence[Rejected] = (),
        groups: Sequence[Group] = (),
    ) -> None:
        shares = [row.tap for row in recipe.distill if row.share]
        if shares and accelerator.distributed_type == DistributedType.FSDP:
            raise UserError(
                f"share is set for '{shares[0]}', but parameters are sharded, so gradients cannot be compared",
                where="distill",
                remedy="Set weight instead, or train without sharding",
            )
        if module.texts is not None and accelerator.num_processes > 1:
            raise UserError(
                f"text_injection works in one process, not in {accelerator.num_processes}",
                where=recipe.name,
                remedy="Train in one process, or remove text_injection.texts",
            )
        self._left_out = rejected
        self.criterion = module.student.criterion
        freeze(module.student, recipe.training.freeze)
        lora, shipped = recipe.training.lora, None
        if lora.parts:
            shipped = copy.deepcopy(module.student)
            add_lora(module.student, lora)
        rates = parameter_groups(module, recipe.training.rates)
        super().__init__(recipe.training, recipe.seed, folder, module, validate, accelerator, rates, shipped)
        if lora.parts:
            self.merge = partial(merge_lora, config=lora)
        self.recipe, self.teachers, self.dataset = recipe, teachers, dataset
        self.memory = module.texts
        rank, world = accelerator.process_index, accelerator.num_processes
        self.sampler = make_sampler(cuts, recipe, rank, world, groups)

    def _counts(self, group: Sequence[Batch]) -> list[int]:
        positions = sum(self.module.student.positions(batch) for batch in group)
        return [positions, sum(len(batch.ids) for batch in group)]

    def _forward(self, batch: Batch) -> tuple[list[Tensor], Mapping[str, Tally]]:
        targets = read_targets(self.teachers, self.module.objective.needs, batch, self.accelerator.device)
        self._pending += self.health.check_teachers(targets)
        output = self.wrapped(batch, targets, self.position.step)
        return [output.token_sum, output.utterance_sum], output.tallies

    def _check_logged(self, values: Mapping[str, float]) -> list[str]:
        if getattr(self.recipe.student, "quantity_weight", 0.0) == 0.0:
            values = {name: value for name, value in values.items() if name != "quantity_total"}
        return self.health.check_logged(self.position.step, values)

    def _check_evaluated(self, values: Mapping[str, float]) -> list[str]:
        decodes = self.module.student.criterion != "ctc_cer"
        return self.health.check_evaluated(self.position.step, values, decodes=decodes)

    def _groups(self) -> Iterator[list[Batch]]:
        """Batches of all epochs in groups of `training.accumulation`."""
        for epoch in itertools.count(self.position.epoch):
            self.position.epoch = epoch
            whole = self.position.batches == self.position.segment == 0
            usable = 0
            for segment in range(self.position.segment, self.sampler.segments):
                self.position.segment = segment
                batches = epoch_batches(self.dataset, self.sampler, epoch, self.position.batches, segment)
                while group := list(itertools.islice(batches, self.config.accumulation)):
                    self.position.batches += len(group)
                    for batch in group:
                        self.position.rejected.update({each.id: each.reason for each in batch.rejected})
                    group = self._usable(group)
                    usable += len(group)
                    if group:
                        yield group
                self.position.batches = 0
            if not usable and whole:
                self._share_rejected()
                if self.accelerator.is_main_process:
                    self._write_beside()
                raise self._nothing_usable()
            self.position.segment = 0

    def _usable(self, group: list[Batch]) -> list[Batch]:
        """The batches that have a usable utterance in any process, so that no process waits for another."""
        if self.accelerator.num_processes == 1:
            return [batch for batch in group if batch.ids]
        sizes = torch.tensor([len(batch.ids) for batch in group], device=self.accelerator.device)
        sizes = self.accelerator.reduce(sizes, "sum")
        return [batch for batch, size in zip(group, sizes.tolist()) if size]

    @property
    def rejected(self) -> list[Rejected]:
        """Utterances that were rejected before training or during training so far."""
        return [*self._left_out, *(Rejected(*each) for each in self.position.rejected.items())]

    def _write_beside(self) -> None:
        write_rejected(self.rejected, self.folder / REJECTED)

    def _nothing_usable(self) -> UserError:
        reasons = list(self.position.rejected.items())
        first = f"; the first of {len(reasons)} is {reasons[0][0]}: {reasons[0][1]}" if reasons else ""
        return UserError(
            f"no training utterance is usable{first}", where=self.recipe.name, remedy="Mend data.train"
        )
