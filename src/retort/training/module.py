"""One training pass: the student, its rows of distillation, and their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retort.common.tally import Tally
from retort.distill.objective import Need, Objective
from retort.nn.collectives import process_count
from retort.students.student import Student
from retort.teachers.frames import frame_targets
from retort.teachers.targets import TeacherTargets, empty_targets, token_targets, utterance_targets
from retort.teachers.teacher import Teacher
from retort.teachers.whisper import reads_audio, text_with_id
from retort.training.batches import Batch


class StepOutput(NamedTuple):
    """Sums over one batch; a tuple, for FSDP finds the tensors that it waits for in tuples and dicts alone.

    Attributes:
        token_sum: weighted losses that are divided by the number of tokens; of a hybrid student, of labelled frames.
        utterance_sum: weighted losses that are divided by the number of utterances.
        tallies: what is logged.
    """

    token_sum: Tensor
    utterance_sum: Tensor
    tallies: dict[str, Tally]


class TrainingModule(nn.Module):
    """Student and objective as one module, so that one forward pass reaches every trained parameter."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, signals: Mapping[Need, TeacherTargets], step: int) -> StepOutput:
        """Losses of `batch`, whose tensors are on this module's device, after `step` updates."""
        output = self.student(batch.features, batch.feature_lengths, *self.student.labels(batch))
        count = self.student.positions(batch)
        hard = [self.student.loss_weights[name] * loss for name, loss in output.losses.items()]
        distilled = self.objective(output.taps, signals, batch.tokens, step)
        sums = {**output.losses, **output.metrics}
        tallies = {name: Tally(value.detach(), count) for name, value in sums.items()}
        token_sum = torch.stack(hard).sum() + distilled.token_sum
        return StepOutput(token_sum, distilled.utterance_sum, {**tallies, **distilled.metrics})


def read_targets(
    teachers: Mapping[str, Teacher], needs: set[Need], batch: Batch, device: torch.device
) -> dict[Need, TeacherTargets]:
    """What the teachers say of a batch, on `device`: each teacher reads the texts once.

    For frames a teacher reads what `batch.frames` has for it, in its own pieces. With several processes the sources
    can be compared between them. Of a batch without utterances nothing is said.
    """
    shared = process_count() > 1
    if not batch.ids:
        return {need: empty_targets(len(batch.tokens), teachers[need[0]].dim, device=device) for need in needs}
    signals: dict[Need, TeacherTargets] = {}
    for name in sorted({teacher for teacher, unit in needs if unit != "frame"}):
        texts = batch.texts
        if reads_audio(teachers[name]):
            texts = [text_with_id(each, text) for each, text in zip(batch.ids, texts)]
        readings = teachers[name].read(texts)
        for need in needs:
            if need == (name, "token"):
                signals[need] = token_targets(readings, texts, batch.pieces, device=device, shared=shared)
            elif need == (name, "utterance"):
                signals[need] = utterance_targets(readings, texts, device=device, shared=shared)
    for name in sorted({teacher for teacher, unit in needs if unit == "frame"}):
        own = batch.frames[name]
        said = token_targets(
            teachers[name].read(own.texts), own.texts, own.pieces, device=device, shared=shared
        )
        ids = [[piece.id for piece in pieces] for pieces in own.pieces]
        signals[name, "frame"] = frame_targets(said, own.segments, ids)
    return signals
