"""Tiny CIF models with random weights, exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.audio.fbank import FbankConfig
from retort.audio.whisper import WhisperFeatureConfig
from retort.config.schema import NormaliserConfig, TokenizerConfig
from retort.config.student import DecoderConfig, EncoderConfig
from retort.decoding.recogniser import Recogniser
from retort.export.onnx_model import export_onnx
from retort.nn.parallel_decoder import ParallelConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper_fired import FiredWhisperConfig
from retort.pretrained.whisper import whisper_architecture, whisper_tokenizer
from retort.runtime.recogniser import ExportedRecogniser, load_export
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig
from retort.students.factory import build_student
from retort.text.tokenizers import CharacterTokenizer
from retort.training.init import start_from_pretrained
from tiny_students import DECODER, ENCODER, FRONTEND, talking_student
from tiny_whispers import tiny_whisper_folder

Exported = tuple[Recogniser, ExportedRecogniser, Path]


def cif_recogniser(encoder: EncoderConfig, decoder: DecoderConfig, cif: CifConfig) -> Recogniser:
    """A tiny CIF model over filter banks, with the decoders of the papers."""
    tokenizer = CharacterTokenizer.train(["abcdefgh ij"])
    config = CifStudentConfig(frontend=FRONTEND, encoder=encoder, decoder=decoder, cif=cif)
    if cif.fires == "ctc":
        torch.manual_seed(0)
        student = build_student(config, tokenizer.size, 80)
    else:
        student = talking_student(config, tokenizer.size, 80)
    return Recogniser(student, tokenizer, FbankConfig(), NormaliserConfig())


def whisper_recogniser(folder: Path) -> Recogniser:
    """A tiny CIF model with Whisper's encoder and decoder, with a window and spare fires."""
    tokenizer = whisper_tokenizer(str(folder), TokenizerConfig(kind="whisper"), ())
    architecture = whisper_architecture(str(folder))
    config = CifStudentConfig(
        encoder=PretrainedEncoderConfig(architecture=architecture, layers=3, dim=16, pool_after=[2]),
        cif=CifConfig(spare=2),
        decoder=FiredWhisperConfig(window=4),
        alignment_weight=0.1,
    )
    torch.manual_seed(1)
    student = build_student(config, tokenizer.size, 80)
    assert isinstance(student, CifStudent)
    start_from_pretrained(student, str(folder), tokenizer)
    torch.nn.init.normal_(student.get_parameter("decoder.fired.weight"))
    features = WhisperFeatureConfig()
    return Recogniser(student, tokenizer, features, NormaliserConfig(case="lower"))


def waves() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = (16000, 9000, 5000)
    return [
        (0.1 * rng.standard_normal(size) * np.sin(np.arange(size) / 900)).astype(np.float32)
        for size in lengths
    ]


def exporter(folders: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """A function from a name to the model in torch and in ONNX Runtime, and the folder of its export."""

    @cache
    def make(name: str) -> Exported:
        batch = replace(ENCODER, positions="relative", convolution_norm="batch", pool_after=[1])
        parallel = ParallelConfig(layers=1, dim=16, heads=2, feedforward=32)
        makers: dict[str, Callable[[], Recogniser]] = {
            "whisper": lambda: whisper_recogniser(tiny_whisper_folder(folders.mktemp("whisper"))),
            "batch_norm": lambda: cif_recogniser(batch, DECODER, CifConfig(context_layers=1)),
            "window": lambda: cif_recogniser(ENCODER, replace(DECODER, window=2), CifConfig(fires="ctc")),
            "parallel": lambda: cif_recogniser(ENCODER, parallel, CifConfig()),
        }
        recogniser, folder = makers[name](), folders.mktemp(name)
        export_onnx(recogniser, folder)
        return recogniser, load_export(folder), folder

    return make
