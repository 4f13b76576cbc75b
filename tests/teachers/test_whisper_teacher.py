"""A Whisper as teacher: probabilities of transformers, of each utterance its own, for students of Whisper's pieces and
of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from retort.common.errors import BadUtterance, UserError
from retort.teachers.cache import CachedTeacher
from retort.teachers.factory import open_teacher_model
from retort.teachers.fill_store import fill
from retort.teachers.store import StoredTeacher
from retort.teachers.targets import token_targets
from retort.teachers.whisper import WhisperPosteriorTeacher, WhisperTeacherConfig, reads_audio, text_with_id
from retort.text.tokenizers import EOS, CharacterTokenizer, Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer
from tiny_whispers import tiny_tokenizer, tiny_whisper_folder

WAVES = {"one": 8000, "two": 24000, "long": 16000 * 31}


def samples_of(utterance: str, rate: int) -> np.ndarray:
    if utterance not in WAVES:
        raise BadUtterance("no audio", where=utterance)
    noise = np.random.default_rng(len(utterance) + WAVES[utterance]).normal(0, 0.1, WAVES[utterance])
    return np.asarray(noise, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper_folder(tmp_path_factory.mktemp("whisper"), frames=1500)


def student(size: int | None = None) -> WhisperTokenizer:
    return WhisperTokenizer.train(["the shell"], tiny_tokenizer(), "en", size)


def teacher(folder: Path, tokenizer: Tokenizer, topk: int = 5) -> WhisperPosteriorTeacher:
    config = WhisperTeacherConfig(model=str(folder), topk=topk)
    made = open_teacher_model(config, tokenizer=tokenizer, samples_of=samples_of)
    assert isinstance(made, WhisperPosteriorTeacher)
    return made


def test_probabilities_are_those_of_transformers(folder: Path) -> None:
    tokenizer = student()
    made = teacher(folder, tokenizer, topk=tokenizer.size)
    asked = [text_with_id("one", "the show"), text_with_id("two", "the show"), text_with_id("one", "a")]
    outputs = made.read(asked)
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    for utterance, text, output in (("one", "the show", outputs[0]), ("two", "the show", outputs[1])):
        features = WhisperFeatureExtractor()(samples_of(utterance, 16000), sampling_rate=16000, return_tensors="pt")
        ids = tokenizer.encode(text)
        rows = [*tokenizer.prompt, *(tokenizer.pieces_of_whisper[each] for each in ids)]
        with torch.inference_mode():
            logits = model(**features, decoder_input_ids=torch.tensor([rows])).logits[0]
        expected = logits.softmax(-1)[len(tokenizer.prompt) - 1 :]
        assert output.ids is not None
        for place, target in enumerate([*ids, EOS]):
            given = dict(zip(output.ids[place + 1].tolist(), output.vectors[place + 1].tolist()))
            own = float(expected[place, tokenizer.pieces_of_whisper[target]])
            assert given[target] == pytest.approx(own, rel=1e-3, abs=1e-6)
    assert not torch.allclose(outputs[0].vectors, outputs[1].vectors)


def test_a_smaller_vocabulary_has_what_it_knows(folder: Path) -> None:
    whole, small = student(), student(4 + 256 + 6)
    asked = [text_with_id("one", "the shell")]
    (all_of,), (some,) = teacher(folder, whole, whole.size).read(asked), teacher(folder, small, small.size).read(asked)
    assert all_of.ids is not None
    assert some.ids is not None
    last = dict(zip(all_of.ids[-1].tolist(), all_of.vectors[-1].tolist()))
    own = dict(zip(some.ids[-1].tolist(), some.vectors[-1].tolist()))
    assert own[EOS] == pytest.approx(last[EOS], rel=1e-3)


def test_characters_are_taught_where_pieces_meet(folder: Path) -> None:
    tokenizer = CharacterTokenizer.train(["他们说"])
    with pytest.raises(UserError):  # bytes of Han characters are not the characters
        teacher(folder, tokenizer)


def test_what_cannot_be_read_is_silent(folder: Path) -> None:
    made = teacher(folder, student())
    outputs = made.read([text_with_id("long", "the"), text_with_id("missing", "the"), text_with_id("one", "s" * 90)])
    assert all(float(output.vectors.sum()) == 0.0 for output in outputs)


def test_stored_targets_are_the_fresh_ones(folder: Path, tmp_path: Path) -> None:
    tokenizer = student()
    made = teacher(folder, tokenizer)
    store = StoredTeacher(tmp_path, made.identity())
    asked = [text_with_id("one", "the show"), text_with_id("two", "the show")]
    assert fill(store, made, asked) == 2
    assert reads_audio(store)
    assert reads_audio(CachedTeacher(made))
    pieces = [tokenizer.pieces("the show")] * 2
    stored, fresh = (token_targets(each.read(asked), asked, pieces) for each in (store, made))
    assert torch.equal(stored.valid, fresh.valid)
    assert bool(stored.valid.all())
    assert (stored.vectors - fresh.vectors).abs().max() < 1e-3
    assert not torch.equal(stored.vectors[0], stored.vectors[1])
