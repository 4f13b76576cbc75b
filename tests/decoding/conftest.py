"""A recogniser of random weights that talks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from retort.audio.fbank import FbankConfig
from retort.config.schema import NormaliserConfig
from retort.decoding.recogniser import Recogniser
from retort.students.cif import CifStudentConfig
from retort.text.tokenizers import EOS, CharacterTokenizer, Tokenizer
from tiny_students import DECODER, ENCODER, FRONTEND, talking_student

MakeRecogniser = Callable[..., Recogniser]


@pytest.fixture(scope="session")
def make_recogniser() -> MakeRecogniser:
    """`make_recogniser(tokenizer=None, layers=2, norm="batch")`: of 20 filter banks and so many convolutions in
    front; the end symbol is never the best."""

    def make(tokenizer: Tokenizer | None = None, layers: int = 2, norm: str = "batch") -> Recogniser:
        tokenizer = tokenizer or CharacterTokenizer(list("▁abcdefgh"))
        config = CifStudentConfig(
            frontend=replace(FRONTEND, layers=layers),
            encoder=replace(ENCODER, layers=2, convolution_norm=norm),
            decoder=DECODER,
        )
        student = talking_student(config, tokenizer.size, 20, seed=4, sharpness=10.0)
        with torch.no_grad():
            student.decoder.vocabulary.weight[EOS] = 0.0
        return Recogniser(student, tokenizer, FbankConfig(bins=20), NormaliserConfig(case="lower"))

    return make


@pytest.fixture(scope="session")
def recogniser(make_recogniser: MakeRecogniser) -> Recogniser:
    return make_recogniser()
