"""One training step: the student, its rows of distillation, and the sums of their losses."""

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
    """Sums over one batch; a tuple, because FSDP finds the output tensors only in tuples and dicts.

    Attributes:
        token_sum: weighted losses that are divided by the number of tokens, or of labelled frames for a hybrid
            student.
        utterance_sum: weighted losses that are divided by the number of utterances.
        tallies: values to log.
    """

    token_sum: Tensor
    utterance_sum: Tensor
    tallies: dict[str, Tally]


class TrainingModule(nn.Module):
    """Student and objective in one module, so that one forward pass uses every trained parameter."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, targets: Mapping[Need, TeacherTargets], step: int) -> StepOutput:
        """Compute the losses of `batch` after `step` updates; its tensors must be on this module's device."""
        output = self.student(batch.features, batch.feature_lengths, *self.student.labels(batch))
        count = self.student.positions(batch)
        hard = [self.student.loss_weights[name] * loss for name, loss in output.losses.items()]
        distilled = self.objective(output.taps, targets, batch.tokens, step)
        sums = {**output.losses, **output.metrics}
        tallies = {name: Tally(value.detach(), count) for name, value in sums.items()}
        token_sum = torch.stack(hard).sum() + distilled.token_sum
        return StepOutput(token_sum, distilled.utterance_sum, {**tallies, **distilled.metrics})


def read_targets(
    teachers: Mapping[str, Teacher], needs: set[Need], batch: Batch, device: torch.device
) -> dict[Need, TeacherTargets]:
    """Compute the teacher targets of a batch, on `device`; each teacher runs once.

    For frames, the input of a teacher is that in `batch.frames`, in its own pieces. With several processes, sources are
    numbered alike in all of them. A batch without utterances gets empty targets.
    """
    shared = process_count() > 1
    if not batch.ids:
        return {need: empty_targets(len(batch.tokens), teachers[need[0]].dim, device=device) for need in needs}
    targets: dict[Need, TeacherTargets] = {}
    for name in sorted({teacher for teacher, unit in needs if unit != "frame"}):
        texts = batch.texts
        if reads_audio(teachers[name]):
            texts = [text_with_id(each, text) for each, text in zip(batch.ids, texts)]
        outputs = teachers[name].read(texts)
        for need in needs:
            if need == (name, "token"):
                targets[need] = token_targets(outputs, texts, batch.pieces, device=device, shared=shared)
            elif need == (name, "utterance"):
                targets[need] = utterance_targets(outputs, texts, device=device, shared=shared)
    for name in sorted({teacher for teacher, unit in needs if unit == "frame"}):
        own = batch.frames[name]
        of_pieces = token_targets(
            teachers[name].read(own.texts), own.texts, own.pieces, device=device, shared=shared
        )
        ids = [[piece.id for piece in pieces] for pieces in own.pieces]
        targets[name, "frame"] = frame_targets(of_pieces, own.segments, ids)
    return targets
