from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.lm.config import ModelConfig
from retort.lm.factory import is_causal_lm, open_causal_lm, save_causal_lm, word_arpa
from retort.lm.kneser_ney import estimate
from retort.lm.neural import NETWORKS, NeuralLM
from retort.lm.ngram import NgramLM
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, CharacterTokenizer, WordTokenizer

LETTERS = CharacterTokenizer(list("abc"))
TEXTS = [[4, 5, 6, 6], [3], []]


def make(kind: str) -> NeuralLM | NgramLM:
    normalise = Normaliser(NormaliserConfig(case="lower"))
    if kind == "ngram":
        ids = np.array([EOS, 4, 5, EOS, EOS, 5, 5, 6, EOS])
        table, _ = estimate(ids, np.array([4, 5]), np.array([1, 2]), LETTERS.size, 3)
        return NgramLM(table, LETTERS, normalise)
    config = ModelConfig(kind=kind, layers=1, dim=8, heads=2, feedforward=16)
    return NeuralLM(NETWORKS[kind](config, LETTERS.size), LETTERS, normalise)


@pytest.mark.parametrize("kind", ["ngram", "transformer", "lstm"])
def test_a_folder_opens_wherever_it_is_moved(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    save_causal_lm(model, tmp_path / "exp" / "model")
    shutil.move(tmp_path / "exp", tmp_path / "moved")
    for folder in (tmp_path / "moved", str(tmp_path / "moved" / "model")):
        assert is_causal_lm(folder)
        again = open_causal_lm(folder)
        assert again.symbols == LETTERS.symbols
        assert again.parameters == model.parameters > 0
        assert again.normalise("A, b!") == "a b"
        for one, other in zip(again.score(TEXTS), model.score(TEXTS), strict=True):
            assert torch.equal(one, other)
    assert (tmp_path / "moved" / "model" / "lm.arpa.gz").exists() == (kind == "ngram")


@pytest.mark.parametrize("damage", ["format", "weights", "vocabulary", "tokenizer", "kind", "folder"])
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, damage: str) -> None:
    save_causal_lm(make("lstm"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    changes = {"format": {"format": 9}, "vocabulary": {"vocabulary": 5}, "kind": {"kind": "masked"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes.get(damage, {})))
    if damage == "weights":
        (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    if damage == "tokenizer":
        shutil.rmtree(tmp_path / "model" / "tokenizer")
    folder = tmp_path / "nowhere" if damage == "folder" else tmp_path
    with pytest.raises(UserError) as caught:
        open_causal_lm(folder)
    assert "\n" not in str(caught.value)
    reported = {"format": "its format is 9", "kind": "no causal language model here", "folder": "no causal"}
    assert reported.get(damage, "") in str(caught.value)


def test_a_recogniser_or_a_bert_is_no_causal_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert not is_causal_lm(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert not is_causal_lm(tmp_path)
    assert not is_causal_lm("google-bert/bert-base-uncased")


@pytest.mark.parametrize("kind", ["ngram", "lstm"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, kind: str, name: str) -> None:
    save_causal_lm(make(kind), tmp_path / "model")
    path = tmp_path / "model" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_causal_lm(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place", "value"), [("keys", 0, 10**6), ("keys", -1, -1), ("log_probs", 3, np.nan)]
)
def test_ngrams_that_do_not_belong_together(tmp_path: Path, name: str, place: int, value: float) -> None:
    save_causal_lm(make("ngram"), tmp_path / "model")
    (tmp_path / "model" / "checksums.json").unlink()
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights[name][place] = value
    save_file(weights, path)
    with pytest.raises(UserError):
        open_causal_lm(tmp_path)


def test_an_arpa_file_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    words = WordTokenizer(["A", "B"])
    ids = np.array([EOS, 4, 5, EOS])
    table, _ = estimate(ids, np.array([4]), np.array([1]), words.size, 2)
    save_causal_lm(NgramLM(table, words, Normaliser(NormaliserConfig())), tmp_path / "model")
    path = word_arpa(tmp_path)
    before = gzip.decompress(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    assert gzip.decompress(word_arpa(tmp_path).read_bytes()) == before
