"""A student of a few thousand weights: its parts, from which a test says with `replace` what it needs otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from retort.config.kinds import config_of
from retort.decoding.cif import beam_fired
from retort.decoding.hypothesis import Hypothesis
from retort.nn.conformer import ConformerConfig
from retort.nn.cross_decoder import CrossDecoderConfig
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.frontend import Conv2dConfig
from retort.students.cif import CifStudent, CifStudentConfig
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
CROSS_DECODER = CrossDecoderConfig(layers=1, dim=16, heads=2, feedforward=32)


def student_config(kind: str, **values: Any) -> Any:
    """The configuration of a kind of student, with those of the values that it has."""
    chosen = config_of("student", kind)
    known = {each.name for each in fields(chosen)} - ({"decoder"} if kind == "attention" else set())
    cross = {"decoder": CROSS_DECODER} if kind == "attention" else {}
    return chosen(**{name: value for name, value in values.items() if name in known}, **cross)


def talking_student(
    config: CifStudentConfig, vocabulary: int, bins: int, seed: int = 0, sharpness: float = 4.0
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
