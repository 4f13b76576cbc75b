"""A trained recogniser as a teacher: its probabilities for the audio and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retort.common.errors import BadUtterance, UserError
from retort.decoding.recogniser import Recogniser
from retort.teachers.factory import open_teacher_model
from retort.teachers.recogniser import RecogniserPosteriorTeacher, RecogniserTeacherConfig
from retort.teachers.whisper import reads_audio, text_with_id
from retort.text.tokenizers import EOS, CharacterTokenizer, Tokenizer
from retort.training.recogniser_teacher import LoadedRecogniser
from tiny_streams import tiny_stream_recogniser

SIZES = {"one": 8000, "two": 12000, "short": 100}


def samples_of(utterance: str, rate: int) -> np.ndarray:
    assert rate == 16000
    if utterance not in SIZES:
        raise BadUtterance("no audio", where=utterance)
    return np.random.default_rng(SIZES[utterance]).normal(0, 0.1, SIZES[utterance]).astype(np.float32)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    made = tiny_stream_recogniser("rotary", "cif", seed=2)
    made.student.float()
    return made


@pytest.fixture(scope="module")
def folder(recogniser: Recogniser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offline")
    recogniser.save(folder)
    return folder


def teacher(folder: Path, tokenizer: Tokenizer, topk: int) -> RecogniserPosteriorTeacher:
    config = RecogniserTeacherConfig(model=str(folder), topk=topk)
    made = open_teacher_model(
        config, tokenizer=tokenizer, samples_of=samples_of, open_recogniser=LoadedRecogniser
    )
    assert isinstance(made, RecogniserPosteriorTeacher)
    assert reads_audio(made)
    return made


def test_probabilities_are_those_of_the_recogniser(folder: Path, recogniser: Recogniser) -> None:
    tokenizer = recogniser.tokenizer
    made = teacher(folder, tokenizer, tokenizer.size)
    asked = [text_with_id("one", "abc"), text_with_id("two", "a bad cab"), text_with_id("two", "abc")]
    outputs = made.read(asked)
    for request, output in zip(asked, outputs):
        utterance, text = request.split("\t")
        features = recogniser._features(samples_of(utterance, 16000))
        ids = [*tokenizer.encode(text), EOS]
        with torch.no_grad():
            encoded = recogniser.encode([features])
            fired = recogniser.student.fire(encoded, torch.tensor([len(ids)]))
            logits = recogniser.student._decode(encoded, fired, torch.tensor([ids]))[1][0]
        expected = logits.softmax(-1)
        assert output.ids is not None
        for place in range(len(ids)):
            given = dict(zip(output.ids[place + 1].tolist(), output.vectors[place + 1].tolist()))
            assert [given[each] for each in range(tokenizer.size)] == pytest.approx(
                expected[place].tolist(), rel=1e-3, abs=1e-6
            )
    assert not torch.allclose(outputs[0].vectors, outputs[2].vectors)


def test_audio_that_cannot_be_used_has_no_soft_labels(folder: Path, recogniser: Recogniser) -> None:
    made = teacher(folder, recogniser.tokenizer, 4)
    asked = [text_with_id("nowhere", "abc"), text_with_id("short", "abc"), text_with_id("one", "abc")]
    missing, short, found = made.read(asked)
    assert not missing.vectors.any()
    assert not short.vectors.any()
    assert found.vectors[1:-1].sum(-1).gt(0.1).all()
    assert made.identity() == teacher(folder, recogniser.tokenizer, 4).identity()


def test_other_pieces_are_refused(folder: Path) -> None:
    with pytest.raises(UserError):
        teacher(folder, CharacterTokenizer(list("▁xyz")), 4)
