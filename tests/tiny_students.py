"""A student of a few thousand weights: its parts, from which a test says with `replace` what it needs otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from retort.config.student import StudentConfig
from retort.decoding.cif import beam_fired
from retort.decoding.hypothesis import Hypothesis
from retort.nn.conformer import ConformerConfig
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.frontend import Conv2dConfig
from retort.students.cif import CifStudent
from retort.students.cross_entropy import smoothed_cross_entropies
from retort.students.factory import build_student
from retort.students.student import Student
from retort.text.tokenizers import Tokenizer
from retort.training.init import fit

FRONTEND = Conv2dConfig(channels=4, layers=1)
ENCODER = ConformerConfig(
    layers=1, dim=16, heads=2, feedforward=32, kernel=5, positions="rotary", pool_after=[]
)
DECODER = AutoregressiveConfig(layers=1, dim=16, heads=2, feedforward=32)


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


def start_from(
    student: Student, tokenizer: Tokenizer | None, folder: str, graph: str = "", parts: Sequence[str] = ()
) -> dict[str, int]:
    """Copy the weights of another model; returns the counts of tensors."""
    found = fit(student, tokenizer, folder, graph, parts)
    student.load_state_dict(found.taken, strict=False)
    return found.counts


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The sum over all positions."""
    return smoothed_cross_entropies(logits, targets, smoothing).sum()


def beam_search(
    student: CifStudent, features: Tensor, lengths: Tensor, beam: int
) -> list[list[Hypothesis]]:
    """The n-best lists of a batch of features."""
    encoded = student.encode(features, lengths)
    return beam_fired(student, student.fire(encoded), beam, encoded=encoded)


def unscored(hypothesis: Hypothesis) -> Hypothesis:
    """The hypothesis without the score that depends on the search."""
    return replace(hypothesis, score=0.0)
