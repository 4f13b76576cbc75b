"""One training step: the student, its rows of distillation, and the sums of their losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retort.common.tally import Tally
from retort.distill.gradients import gradient_norm
from retort.distill.objective import Need, Objective
from retort.distill.row import RowResult
from retort.nn.chunks import draw_chunks
from retort.students.cif import CifStudent
from retort.students.student import Student, StudentOutput
from retort.teachers.frames import frame_targets
from retort.teachers.targets import TeacherTargets, empty_targets, token_targets, utterance_targets
from retort.teachers.teacher import Teacher
from retort.teachers.whisper import reads_audio, text_with_id
from retort.training.batches import Batch
from retort.training.text_injection import TextInjection


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


class GradientMeter:
    """Measures the gradients of rows and of the student's own losses on the parameters of a tap.

    Args:
        own: sum of the student's weighted losses over a batch.
        tokens, utterances: counts of the batch, by which sums are divided.
    """

    def __init__(self, student: Student, own: Tensor, tokens: int, utterances: int) -> None:
        self._student, self._own = student, own / max(tokens, 1)
        self._counts = {"tokens": max(tokens, 1), "utterances": max(utterances, 1)}
        self._norms: dict[str, Tensor] = {}

    def __call__(self, tap: str, result: RowResult) -> tuple[Tensor, Tensor]:
        """Norms of the gradients of a row's unweighted loss and of the own losses."""
        parameters = [each for each in self._student.tap_parameters(tap) if each.requires_grad]
        if tap not in self._norms:
            self._norms[tap] = gradient_norm(self._own, parameters)
        return gradient_norm(result.total / self._counts[result.normaliser], parameters), self._norms[tap]


class TrainingModule(nn.Module):
    """Student and objective in one module, so that one forward pass uses every trained parameter.

    Args:
        seed: of the draws of chunk sizes.
        texts: text that the decoder is trained on as well, in training mode.
    """

    def __init__(
        self, student: Student, objective: Objective, seed: int = 0, texts: TextInjection | None = None
    ) -> None:
        super().__init__()
        self.texts = texts
        self.seed = seed
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, targets: Mapping[Need, TeacherTargets], step: int) -> StepOutput:
        """Compute the losses of `batch` after `step` updates; its tensors must be on this module's device."""
        encoder = self.student.config.encoder
        self.student.encoder.chunks = draw_chunks(encoder.chunk, encoder.left_context, self.seed, step)
        try:
            output = self.student(batch.features, batch.feature_lengths, *self.student.labels(batch))
            count = self.student.positions(batch)
            text_sum, of_text = self._text_loss(batch, output, count)
        finally:
            self.student.encoder.chunks = None
        hard = [self.student.loss_weights[name] * loss for name, loss in output.losses.items()]
        own = torch.stack(hard).sum()
        measure = GradientMeter(self.student, own, count, len(batch.ids)) if self.training else None
        distilled = self.objective(output.taps, targets, batch.tokens, step, measure)
        sums = {**output.losses, **output.metrics}
        tallies = {name: Tally(value.detach(), count) for name, value in sums.items()}
        token_sum = own + distilled.token_sum + text_sum
        return StepOutput(token_sum, distilled.utterance_sum, {**tallies, **distilled.metrics, **of_text})

    def _text_loss(self, batch: Batch, output: StudentOutput, count: int) -> tuple[Tensor, dict[str, Tally]]:
        """The weighted loss on text, to be divided by the number of tokens of the speech, and values to log.

        It is the mean over the tokens of the text, times `count`, the number of tokens of the batch. If there are fewer
        tokens than `share` asks for, as long as the bank lacks sounds, each counts no more than usual.
        """
        nothing = torch.zeros((), device=batch.tokens.device)
        if self.texts is None or not self.training or not batch.ids:
            return nothing, {}
        assert isinstance(self.student, CifStudent)
        assert output.fired is not None
        self.texts.learn(batch, output.fired)
        drawn = self.texts.draw(count)
        used = Tally(torch.tensor(float(drawn.used), device=nothing.device), max(drawn.considered, 1))
        if drawn.utterances is None:
            return nothing, {"text.used": used}
        ce = self.student.read_fired(drawn.utterances.to(nothing.device))
        tokens = int(drawn.utterances.lengths.sum())
        logged = {
            "text.ce": Tally(ce.total.detach(), tokens),
            "text.correct": Tally(ce.correct, tokens),
            "text.used": used,
            "text.tokens": Tally(torch.tensor(float(tokens), device=nothing.device), 1),
        }
        config = self.texts.config
        return config.weight * count / max(tokens, config.share * count) * ce.total, logged


def read_targets(
    teachers: Mapping[str, Teacher], needs: set[Need], batch: Batch, device: torch.device
) -> dict[Need, TeacherTargets]:
    """Compute the teacher targets of a batch, on `device`; each teacher runs once.

    For frames, the input of a teacher is that in `batch.frames`, in its own pieces. Sources have the same numbers in all
    batches and processes. A batch without utterances gets empty targets.
    """
    if not batch.ids:
        return {
            need: empty_targets(len(batch.tokens), teachers[need[0]].dim, device=device) for need in needs
        }
    targets: dict[Need, TeacherTargets] = {}
    for name in sorted({teacher for teacher, unit in needs if unit != "frame"}):
        texts = batch.texts
        if reads_audio(teachers[name]):
            texts = [text_with_id(each, text) for each, text in zip(batch.ids, texts)]
        outputs = teachers[name].read(texts)
        for need in needs:
            if need in ((name, "token"), (name, "word")):
                words = need[1] == "word"
                targets[need] = token_targets(
                    outputs, texts, batch.pieces, device=device, shared=True, words=words
                )
            elif need == (name, "utterance"):
                targets[need] = utterance_targets(outputs, texts, device=device, shared=True)
    for name in sorted({teacher for teacher, unit in needs if unit == "frame"}):
        own = batch.frames[name]
        of_pieces = token_targets(
            teachers[name].read(own.texts), own.texts, own.pieces, device=device, shared=True
        )
        ids = [[piece.id for piece in pieces] for pieces in own.pieces]
        targets[name, "frame"] = frame_targets(of_pieces, own.segments, ids)
    return targets
