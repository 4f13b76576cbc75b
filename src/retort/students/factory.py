"""The only place that maps `student.kind` to a class."""

from __future__ import annotations

from retort.config import StudentConfig
from retort.errors import UserError
from retort.students.cif import CifStudent
from retort.students.hybrid import HybridStudent
from retort.students.student import Student

STUDENTS: dict[str, type[CifStudent] | type[HybridStudent]] = {"cif": CifStudent, "hybrid": HybridStudent}


def build_student(config: StudentConfig, vocabulary: int, bins: int) -> Student:
    """A student with fresh weights.

    Args:
        config: kind and architecture.
        vocabulary: number of ids, the special ones counted; of a hybrid student the number of senones.
        bins: filter banks a frame.
    """
    return STUDENTS[config.kind](config, vocabulary, bins)


def build_cif_student(config: StudentConfig, vocabulary: int, bins: int) -> CifStudent:
    """The same where only a CIF student will do, for it writes tokens.

    Raises:
        UserError: the kind is another.
    """
    if config.kind != "cif":
        raise UserError(f"student.kind is {config.kind}, this is for cif alone")
    return CifStudent(config, vocabulary, bins)
