"""The only place that maps `student.kind` to a class."""

from __future__ import annotations

from retort.config import StudentConfig
from retort.students.cif import CifStudent

STUDENTS = {"cif": CifStudent}


def build_student(config: StudentConfig, vocabulary: int, bins: int) -> CifStudent:
    """A student with fresh weights.

    Args:
        config: kind and architecture.
        vocabulary: number of ids, the special ones counted.
        bins: filter banks a frame.
    """
    return STUDENTS[config.kind](config, vocabulary, bins)
