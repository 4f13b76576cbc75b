"""Teacher models, their stores on disk, and the targets that they give for the positions of a student."""

from retort.teachers.cache import CachedTeacher
from retort.teachers.factory import (
    TeacherModel,
    check_there,
    open_store,
    open_teacher,
    open_teacher_model,
    teacher_tokenizer,
)
from retort.teachers.fill_store import Estimate, fill
from retort.teachers.masked_lm import MaskedLMTeacher
from retort.teachers.posteriors import PosteriorTeacher
from retort.teachers.store import StoredTeacher
from retort.teachers.symbols import check_units, symbol_ids, teacher_symbols
from retort.teachers.targets import TeacherTargets, token_targets, utterance_targets
from retort.teachers.teacher import Teacher, TeacherOutput

__all__ = [
    "CachedTeacher",
    "Estimate",
    "MaskedLMTeacher",
    "PosteriorTeacher",
    "StoredTeacher",
    "Teacher",
    "TeacherModel",
    "TeacherOutput",
    "TeacherTargets",
    "check_there",
    "check_units",
    "fill",
    "open_store",
    "open_teacher",
    "open_teacher_model",
    "symbol_ids",
    "teacher_symbols",
    "teacher_tokenizer",
    "token_targets",
    "utterance_targets",
]
