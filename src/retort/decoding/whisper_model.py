"""Opens a Whisper model of `transformers` as a recogniser."""

from __future__ import annotations

import torch

from retort.audio.whisper import WhisperFeatureConfig
from retort.config.schema import NormaliserConfig, TokenizerConfig
from retort.decoding.recogniser import Recogniser
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.pretrained.whisper import open_whisper, whisper_architecture, whisper_tokenizer
from retort.students.factory import build_student
from retort.students.whisper import WhisperStudent, WhisperStudentConfig, copy_whisper


def open_whisper_recogniser(
    name: str, language: str = "en", *, pad_seconds: float = 30.0, device: torch.device | str = "cpu"
) -> Recogniser:
    """Open a Whisper model without training it.

    Args:
        name: folder, name of `retort fetch`, or Hugging Face name.
        language: language of the model (ISO 639); ignored by English-only models.
        pad_seconds: shorter audio is padded to this duration; Whisper was trained on 30 s and repeats itself
            otherwise.

    Raises:
        UserError: the model cannot be found or opened, is not a Whisper model, or does not support the
            language.
    """
    architecture = whisper_architecture(name)
    tokenizer = whisper_tokenizer(name, TokenizerConfig(kind="whisper", language=language), ())
    bins = architecture["num_mel_bins"]
    encoder = PretrainedEncoderConfig(
        architecture=architecture,
        layers=architecture["encoder_layers"],
        dim=architecture["d_model"],
        dropout=0.0,
        pool_after=[],
    )
    config = WhisperStudentConfig(encoder=encoder, label_smoothing=0.0, ctc_weight=0.0)
    with torch.random.fork_rng(devices=[]):
        student = build_student(config, tokenizer.size, bins)
    assert isinstance(student, WhisperStudent)
    copy_whisper(student, student.decoder, open_whisper(name), tokenizer)
    features = WhisperFeatureConfig(bins=bins, pad_seconds=pad_seconds)
    return Recogniser(student, tokenizer, features, NormaliserConfig(case="lower"), device)
