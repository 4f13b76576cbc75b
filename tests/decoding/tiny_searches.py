"""Students whose decoder is watched at work: their fires, and what a search finds in them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from retort.decoding.hypothesis import Hypothesis
from retort.nn.cif import FiredTokens
from retort.students.cif import CifStudent, CifStudentConfig
from retort.text.tokenizers import EOS
from tiny_students import DECODER, ENCODER, FRONTEND, talking_student

BINS, DIM = 12, DECODER.dim


def build(vocabulary: int, seed: int = 0, dim: int = DIM) -> CifStudent:
    """Random, in eval mode, sharp enough that hypotheses differ, its decoder in float64."""
    config = CifStudentConfig(
        frontend=FRONTEND,
        encoder=replace(ENCODER, dim=dim, feedforward=8),
        decoder=replace(DECODER, layers=2),
    )
    student = talking_student(config, vocabulary, BINS, seed)
    student.decoder.double()  # batches differ by rounding, and float32 would let it decide over near equals
    return student.eval()


def fire(lengths: list[int], seed: int = 0, filler: float = 0.0, dim: int = DIM) -> FiredTokens:
    generator = torch.Generator().manual_seed(seed)
    most = max(lengths, default=0)
    embeddings = torch.full((len(lengths), most, dim), filler, dtype=torch.float64)
    times = torch.zeros(len(lengths), most)
    for row, length in enumerate(lengths):
        embeddings[row, :length] = torch.randn(length, dim, dtype=torch.float64, generator=generator)
        times[row, :length] = torch.rand(length, generator=generator).add(0.1).cumsum(0)
    return FiredTokens(embeddings, torch.tensor(lengths), times, torch.tensor(lengths).float())


def row_of(fired: FiredTokens, row: int) -> FiredTokens:
    count = int(fired.lengths[row])
    return FiredTokens(
        fired.embeddings[row : row + 1, :count],
        fired.lengths[row : row + 1],
        fired.fire_times[row : row + 1, :count],
        fired.quantity[row : row + 1],
    )


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [each.ids for each in found] == [each.ids for each in expected]
    for one, other in zip(found, expected):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert one.ends == pytest.approx(other.ends)


def saying(logits: list[list[float]]) -> tuple[CifStudent, FiredTokens]:
    """A student whose decoder gives these logits at its fires, whatever the history."""
    student = build(DIM)
    with torch.no_grad():
        student.decoder.output.weight[:, :DIM] = 0.0
        student.decoder.output.weight[:, DIM:] = torch.eye(DIM)
        student.decoder.vocabulary.weight.copy_(torch.eye(DIM))
    embeddings = torch.tensor([logits], dtype=torch.float64)
    times = torch.arange(1.0, len(logits) + 1)[None]
    return student, FiredTokens(embeddings, torch.tensor([len(logits)]), times, torch.ones(1))


def distribution(**probabilities: float) -> list[float]:
    """Logits of a fire from probabilities by name: `end` or `tN`."""
    logits = [-100.0] * DIM
    for name, probability in probabilities.items():
        logits[EOS if name == "end" else int(name[1:])] = math.log(probability)
    return logits
