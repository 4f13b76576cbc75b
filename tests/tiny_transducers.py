"""Transducers of a few thousand weights, in float64, sharp enough that their hypotheses differ."""

from __future__ import annotations

from dataclasses import replace

import torch

from retort.nn.predictor import TransducerConfig
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent, TransducerStudentConfig
from tiny_students import ENCODER, FRONTEND

BINS, DIM = 12, ENCODER.dim


def config(
    predictor: str = "stateless", ctc_weight: float = 0.5, dropout: float = 0.0, monotonic: bool = False
) -> TransducerStudentConfig:
    return TransducerStudentConfig(
        frontend=FRONTEND,
        encoder=replace(ENCODER, layers=2, dropout=dropout, attention_dropout=dropout, pool_after=[1]),
        transducer=TransducerConfig(
            predictor=predictor, dim=10, joiner_dim=14, dropout=dropout, monotonic=monotonic
        ),
        ctc_weight=ctc_weight,
    )


def build(vocabulary: int, predictor: str = "stateless", seed: int = 0) -> TransducerStudent:
    """Random, in eval mode."""
    torch.manual_seed(seed)
    student = build_student(config(predictor), vocabulary, BINS)
    assert isinstance(student, TransducerStudent)
    with torch.no_grad():
        student.joiner.output.weight.mul_(6.0)
        student.joiner.acoustic.weight.mul_(3.0)
        student.joiner.linguistic.weight.mul_(4.0)
    return student.double().eval()


def make_encoded(lengths: list[int], seed: int = 0, filler: float = 0.0) -> Encoded:
    """Random hidden frames."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.full((len(lengths), max(lengths, default=0), DIM), filler, dtype=torch.float64)
    for row, length in enumerate(lengths):
        hidden[row, :length] = torch.randn(length, DIM, dtype=torch.float64, generator=generator)
    return Encoded(hidden, torch.tensor(lengths))
