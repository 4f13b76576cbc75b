"""A factored student whose language part was trained on text first, and the search at another scale of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig, Recipe
from retort.decoding.factory import open_search
from retort.decoding.options import DecodingOptions
from retort.lm.config import ModelConfig
from retort.lm.factory import save_causal_lm
from retort.lm.neural import CausalTransformer, NeuralLM
from retort.nn.factored import FactoredConfig, FactoredDecoder
from retort.students.cif import CifStudent, CifStudentConfig
from retort.students.factory import build_student
from retort.text.normalise import Normaliser
from retort.text.tokenizers import CharacterTokenizer
from retort.training.language_part import check_language, take_language
from tiny_students import DECODER, ENCODER, FRONTEND, talking_student

TOKENIZER = CharacterTokenizer(list("▁abcdefgh"))
SIZES: dict[str, Any] = {"layers": 1, "dim": 16, "heads": 2, "feedforward": 32}


def config(language: str = "") -> CifStudentConfig:
    decoder = FactoredConfig(**SIZES, language=language, language_scale=0.4)
    return CifStudentConfig(frontend=FRONTEND, encoder=ENCODER, decoder=decoder)


def lm_at(folder: Path, tokenizer: CharacterTokenizer = TOKENIZER, **changed: Any) -> str:
    torch.manual_seed(3)
    network = CausalTransformer(ModelConfig(**(SIZES | {"dropout": 0.0} | changed)), tokenizer.size)
    save_causal_lm(NeuralLM(network, tokenizer, Normaliser(NormaliserConfig())), folder)
    return str(folder)


def taken(language: str) -> tuple[int, CifStudent]:
    recipe = Recipe(name="x", student=config(language))
    student = build_student(recipe.student, TOKENIZER.size, 20)
    assert isinstance(student, CifStudent)
    check_language(recipe)
    return take_language(student, recipe, TOKENIZER), student


def test_the_language_part_is_that_of_the_model(tmp_path: Path) -> None:
    folder = lm_at(tmp_path / "lm")
    count, student = taken(folder)
    decoder = student.eval().decoder
    assert count > 10
    assert isinstance(decoder, FactoredDecoder)
    torch.manual_seed(3)
    network = CausalTransformer(ModelConfig(**SIZES, dropout=0.0), TOKENIZER.size).eval()
    previous = torch.tensor([[2, 5, 6, 7]])
    found = decoder.language_logits(decoder.history(previous, torch.zeros(1, 4, 16)))
    torch.testing.assert_close(found[..., 4:], network(previous)[0][..., 4:])
    assert taken("")[0] == 0


def test_a_model_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no causal"):
        taken(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="layers"):
        taken(lm_at(tmp_path / "deep", layers=2))
    with pytest.raises(UserError, match="tokens"):
        taken(lm_at(tmp_path / "other", CharacterTokenizer(list("▁abcdefgx"))))


def test_the_search_takes_another_scale_and_leaves_the_student_as_it_is() -> None:
    student = talking_student(config(), TOKENIZER.size, 20, sharpness=4.0).eval()
    features, lengths = torch.randn(2, 120, 20), torch.tensor([120, 90])
    encoded = student.encode(features, lengths)
    fired = student.fire(encoded)
    scaled = student.with_language_scale(1.7)
    previous = torch.randint(4, TOKENIZER.size, fired.embeddings.shape[:2])
    whole = scaled.decode(encoded, fired, previous)
    decoder = student.decoder
    assert isinstance(decoder, FactoredDecoder)
    assert decoder.language_scale == 0.4
    language = decoder.language_logits(decoder.history(previous, fired.embeddings)).log_softmax(-1)
    torch.testing.assert_close(whole, student.decode(encoded, fired, previous) + (1.7 - 0.4) * language)
    normalise = Normaliser(NormaliserConfig())
    for beam in (1, 4):
        search = open_search(student, TOKENIZER, normalise, DecodingOptions(beam=beam, language_scale=1.7))
        expected = open_search(scaled, TOKENIZER, normalise, DecodingOptions(beam=beam))
        found, wanted = (each(encoded) for each in (search, expected))
        assert found == wanted


def test_a_decoder_without_a_language_part_has_no_scale() -> None:
    plain = build_student(replace(config(), decoder=DECODER), TOKENIZER.size, 20)
    with pytest.raises(UserError, match="language"):
        open_search(plain, TOKENIZER, Normaliser(NormaliserConfig()), DecodingOptions(language_scale=0.5))
