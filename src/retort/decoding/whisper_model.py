"""A Whisper model of `transformers` as a recogniser, as it is."""

from __future__ import annotations

import torch

from retort.config.schema import FeatureConfig, NormaliserConfig, TokenizerConfig
from retort.config.student import DecoderConfig, EncoderConfig, StudentConfig
from retort.decoding.recogniser import Recogniser
from retort.pretrained.whisper import open_whisper, whisper_architecture, whisper_tokenizer
from retort.students.factory import build_student
from retort.students.whisper import WhisperStudent, copy_whisper


def open_whisper_recogniser(
    name: str, language: str = "en", *, pad_seconds: float = 30.0, device: torch.device | str = "cpu"
) -> Recogniser:
    """Open a Whisper without training it.

    Args:
        name: folder, or name of `retort fetch` or the hub.
        language: code of the language of the audio; models of English only do not read it.
        pad_seconds: shorter audio is padded to this; without the 30 seconds of its training it repeats itself.

    Raises:
        UserError: it cannot be found or opened, is no Whisper, or does not know the language.
    """
    architecture = whisper_architecture(name)
    tokenizer = whisper_tokenizer(name, TokenizerConfig(kind="whisper", language=language), ())
    bins = architecture["num_mel_bins"]
    encoder = EncoderConfig(
        kind="pretrained",
        architecture=architecture,
        layers=architecture["encoder_layers"],
        dim=architecture["d_model"],
        dropout=0.0,
        pool_after=[],
    )
    config = StudentConfig(
        kind="whisper", encoder=encoder, decoder=DecoderConfig(dropout=0.0), label_smoothing=0.0, ctc_weight=0.0
    )
    with torch.random.fork_rng(devices=[]):
        student = build_student(config, tokenizer.size, bins)
    assert isinstance(student, WhisperStudent)
    copy_whisper(student, student.decoder, open_whisper(name), tokenizer)
    features = FeatureConfig(kind="whisper", bins=bins, cmvn=False, storage="online", pad_seconds=pad_seconds)
    return Recogniser(student, tokenizer, features, NormaliserConfig(case="lower"), device)
