"""A tap and its targets of random numbers."""

from __future__ import annotations

import torch

from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets


def tap_and_targets(lengths: list[int], tap_dim: int, teacher_dim: int) -> tuple[Tap, TeacherTargets]:
    """Random fired vectors and teacher vectors, every position with a teacher piece of its own."""
    generator, longest = torch.Generator().manual_seed(0), max(lengths)
    values = torch.randn(len(lengths), longest, tap_dim, generator=generator)
    spoken = torch.randn(len(lengths), longest, teacher_dim, generator=generator)
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    place = torch.arange(valid.numel()).view(valid.shape)
    sources = torch.stack((place, place + 1), -1) * valid[..., None]
    return Tap(values, torch.tensor(lengths), "token"), TeacherTargets(spoken, valid, sources)
