"""Creation of students; the only place that maps `student.kind` to a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retort.config.student import StudentConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.pretrained.speech import speech_architecture
from retort.pretrained.whisper import whisper_architecture
from retort.students.attention import AttentionStudent
from retort.students.cif import CifStudent
from retort.students.ctc import CtcStudent
from retort.students.hybrid import HybridStudent
from retort.students.student import Student
from retort.students.transducer import TransducerStudent
from retort.students.whisper import WhisperStudent

STUDENTS: dict[str, Callable[[StudentConfig, int, int], Student]] = {
    "cif": CifStudent,
    "hybrid": HybridStudent,
    "ctc": CtcStudent,
    "attention": AttentionStudent,
    "transducer": TransducerStudent,
    "whisper": WhisperStudent,
}


def build_student(config: StudentConfig, vocabulary: int, bins: int) -> Student:
    """Create a student with random weights.

    Args:
        config: kind and architecture.
        vocabulary: number of ids, including special ones; for a hybrid student the number of senones.
        bins: number of filter banks per frame, or samples per frame.

    Raises:
        UserError: the pretrained encoder cannot be opened, or does not match the configuration.
    """
    encoder = config.encoder
    if isinstance(encoder, PretrainedEncoderConfig) and not encoder.architecture:
        read = whisper_architecture if config.has_whisper_decoder else speech_architecture
        encoder = replace(encoder, architecture=read(encoder.model))
        config = replace(config, encoder=encoder)
    return STUDENTS[config.kind](config, vocabulary, bins)
