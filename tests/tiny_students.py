"""A student of a few thousand weights: its parts, from which a test says with `replace` what it needs otherwise."""

from __future__ import annotations

import torch

from retort.config.student import DecoderConfig, EncoderConfig, FrontendConfig, StudentConfig
from retort.students.cif import CifStudent
from retort.students.factory import build_student

FRONTEND = FrontendConfig(channels=4, layers=1)
ENCODER = EncoderConfig(
    layers=1, dim=16, heads=2, feedforward=32, kernel=5, positions="rotary", pool_after=[]
)
DECODER = DecoderConfig(layers=1, dim=16, heads=2, feedforward=32)


def talking_student(
    config: StudentConfig, vocabulary: int, bins: int, seed: int = 0, sharpness: float = 4.0
) -> CifStudent:
    """Random weights, in training mode, but larger where it fires and where it chooses: it says this and that."""
    torch.manual_seed(seed)
    student = build_student(config, vocabulary, bins)
    with torch.no_grad():
        student.weights.linear.weight.mul_(5.0)
        student.decoder.vocabulary.weight.mul_(sharpness)
    return student
