"""CTC students on encoders of the wave in transformers: the same logits and texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.audio.wave import WaveConfig
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.export.wav2vec import export_wav2vec, is_wav2vec
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.pretrained.speech import speech_architecture
from retort.students.ctc import CtcStudent
from retort.students.factory import build_student
from retort.text.tokenizers import EOS, PAD, CharacterTokenizer
from tiny_speech import DIM, KINDS, make_speech_encoder
from tiny_students import student_config


def recogniser_of(folder: Path, kind: str, norm: str, cmvn: bool = True) -> Recogniser:
    """A tiny model with random weights, 20 ms per output frame."""
    architecture = speech_architecture(str(make_speech_encoder(folder, kind, norm)))
    encoder = PretrainedEncoderConfig(architecture=architecture, dim=DIM, pool_after=[])
    tokenizer = CharacterTokenizer.train(["abcdefgh ij'"])
    torch.manual_seed(1)
    student = build_student(student_config("ctc", encoder=encoder), tokenizer.size, 160).eval()
    with torch.no_grad():
        student.get_parameter("ctc.weight").mul_(20.0)
        student.get_parameter("ctc.bias")[[PAD, EOS]] = -1e3
    features = WaveConfig(cmvn=cmvn)
    return Recogniser(student, tokenizer, features, NormaliserConfig(case="lower"))


@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_transformers_gives_the_same_logits_and_texts(kind: str, norm: str, tmp_path: Path) -> None:
    from transformers import pipeline

    recogniser = recogniser_of(tmp_path / "encoder", kind, norm)
    assert is_wav2vec(recogniser)
    out = tmp_path / "out"
    export_wav2vec(recogniser, out)
    engine = pipeline("automatic-speech-recognition", model=str(out), device="cpu")
    student = recogniser.student
    assert isinstance(student, CtcStudent)
    rng = np.random.default_rng(0)
    options = DecodingOptions(vad="none", no_speech_threshold=1.0)
    for size in (16000, 8000):
        wave = (0.1 * rng.standard_normal(size)).astype(np.float32)
        inputs = engine.feature_extractor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            theirs = engine.model(inputs.input_values).logits
            features = inputs.input_values.reshape(1, -1, 160)
            own = student.ctc(student.encode(features, torch.tensor([features.shape[1]])).hidden)
        torch.testing.assert_close(theirs[..., EOS + 1 :], own[..., EOS + 1 :], atol=1e-3, rtol=1e-4)
        text = engine(wave.copy())["text"]
        assert " ".join(text.split()) == recogniser.transcribe_samples(wave, options=options).text
        assert text.strip()


def test_models_that_transformers_has_no_class_for(tmp_path: Path) -> None:
    recogniser = recogniser_of(tmp_path / "encoder", "wav2vec2", "layer")
    encoder = replace(recogniser.student.config.encoder, pool_after=[1])
    config = replace(recogniser.student.config, encoder=encoder)
    recogniser.student = build_student(config, recogniser.tokenizer.size, 160)
    with pytest.raises(UserError, match="pool_after"):
        export_wav2vec(recogniser, tmp_path / "out")
    assert not (tmp_path / "out").exists()
