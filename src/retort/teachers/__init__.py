"""Teachers read texts; what they say is laid beside the student's positions."""

from retort.teachers.cache import CachedTeacher
from retort.teachers.factory import (
    FreshTeacher,
    check_there,
    open_fresh,
    open_store,
    open_teacher,
    teacher_tokenizer,
)
from retort.teachers.fill_store import Estimate, fill
from retort.teachers.masked_lm import MaskedLMTeacher
from retort.teachers.posteriors import PosteriorTeacher
from retort.teachers.signal import Signal, token_signal, utterance_signal
from retort.teachers.statistics import TeacherDescription, describe_teacher
from retort.teachers.store import StoredTeacher
from retort.teachers.symbols import check_units, symbol_ids, teacher_symbols
from retort.teachers.teacher import Reading, Teacher

__all__ = [
    "CachedTeacher",
    "Estimate",
    "FreshTeacher",
    "MaskedLMTeacher",
    "PosteriorTeacher",
    "Reading",
    "Signal",
    "StoredTeacher",
    "Teacher",
    "TeacherDescription",
    "check_there",
    "check_units",
    "describe_teacher",
    "fill",
    "open_fresh",
    "open_store",
    "open_teacher",
    "symbol_ids",
    "teacher_symbols",
    "teacher_tokenizer",
    "token_signal",
    "utterance_signal",
]
