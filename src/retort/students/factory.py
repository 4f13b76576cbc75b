"""Creation of students."""

from __future__ import annotations

from dataclasses import replace

from retort.config.kinds import builder_of
from retort.config.student import StudentConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.pretrained.speech import speech_architecture
from retort.pretrained.whisper import whisper_architecture
from retort.students.student import Student


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
    made = builder_of("student", config.kind)(config, vocabulary, bins)
    assert isinstance(made, Student)
    return made
