"""A fine-tuned Whisper in other engines: the same outputs, rows outside its vocabulary from the model it started from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser
from retort.export.base import base_of
from retort.export.ctranslate2 import export_ctranslate2
from retort.export.whisper import export_transformers
from retort.pretrained.ctranslate2 import read_whisper
from retort.students.whisper import WhisperStudent
from retort.text.tokenizers import EOS, SPECIAL
from retort.text.whisper_pieces import WhisperTokenizer
from tiny_whispers import tiny_whisper_folder, tiny_whisper_recogniser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper_folder(tmp_path_factory.mktemp("whisper"))


def changed(folder: Path, size: int | None = None) -> Recogniser:
    """A student that learned something."""
    recogniser = tiny_whisper_recogniser(folder, size=size, texts=("the show",), ctc_weight=0.3)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in recogniser.student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return recogniser


@pytest.mark.parametrize("size", [None, 4 + 256 + 6])
def test_transformers_gives_the_same_logits(folder: Path, tmp_path: Path, size: int | None) -> None:
    recogniser = changed(folder, size)
    export_transformers(recogniser, str(folder), tmp_path)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    student, tokenizer = recogniser.student, recogniser.tokenizer
    assert isinstance(student, WhisperStudent)
    assert isinstance(tokenizer, WhisperTokenizer)
    features = torch.randn(1, 120, 80)
    ids = tokenizer.encode("the show")
    rows = [*tokenizer.prompt, *(tokenizer.pieces_of_whisper[each] for each in ids)]
    with torch.inference_mode():
        logits = model(input_features=features.transpose(1, 2), decoder_input_ids=torch.tensor([rows])).logits
        encoded = student.encode(features, torch.tensor([120]))
        decoded = student.decoder(torch.tensor([[EOS, *ids]]), encoded.hidden, encoded.lengths)
        own = student.decoder.logits(decoded.states)
    theirs = logits[:, len(tokenizer.prompt) - 1 :][..., torch.tensor(tokenizer.pieces_of_whisper)]
    first = len(SPECIAL)
    assert (own[..., first:] - theirs[..., first:]).abs().max() < 1e-3
    assert (own[..., EOS] - theirs[..., EOS]).abs().max() < 1e-3
    outside = set(range(tokenizer.ordinary)) - set(tokenizer.pieces_of_whisper)
    assert outside <= set(model.generation_config.suppress_tokens)
    assert bool(outside) == (size is not None)
    before = WhisperForConditionalGeneration.from_pretrained(folder).state_dict()
    for piece in list(outside)[:3]:
        name = "model.decoder.embed_tokens.weight"
        assert torch.equal(model.state_dict()[name][piece], before[name][piece])


def test_ctranslate2_holds_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    recogniser = changed(folder)
    export_transformers(recogniser, str(folder), tmp_path / "transformers")
    export_ctranslate2(recogniser, str(folder), tmp_path / "ctranslate2")
    found = read_whisper(tmp_path / "ctranslate2" / "model.bin")
    expected = load_file(tmp_path / "transformers" / "model.safetensors")
    assert found.tensors.keys() == expected.keys() - {"proj_out.weight"}
    for name, tensor in found.tensors.items():
        assert np.array_equal(tensor, expected[name].numpy()), name
    assert found.sizes["decoder_layers"] == 2
    settings = json.loads((tmp_path / "ctranslate2" / "config.json").read_text())
    names = json.loads((tmp_path / "ctranslate2" / "vocabulary.json").read_text())
    assert len(names) == found.sizes["vocab_size"]
    assert [names[each] for each in settings["lang_ids"]] == ["<|en|>", "<|zh|>"]
    assert settings["alignment_heads"] == [[0, 1], [1, 0]]


def test_half_is_half_the_size(folder: Path, tmp_path: Path) -> None:
    recogniser = changed(folder)
    export_ctranslate2(recogniser, str(folder), tmp_path / "whole")
    export_ctranslate2(recogniser, str(folder), tmp_path / "half", half=True)
    whole, half = ((tmp_path / name / "model.bin").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    assert read_whisper(tmp_path / "half" / "model.bin").tensors["model.encoder.conv1.weight"].dtype == np.float16


def test_ctranslate2_itself_gives_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    recogniser = changed(folder)
    export_ctranslate2(recogniser, str(folder), tmp_path / "model")
    tokenizer = recogniser.tokenizer
    assert isinstance(tokenizer, WhisperTokenizer)
    model = ctranslate2.models.Whisper(str(tmp_path / "model"), compute_type="float32")
    for seed in range(3):
        features = torch.randn(120, 80, generator=torch.Generator().manual_seed(seed))
        (own,) = recogniser.decode([features])
        given = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.T.numpy()[None]))
        (made,) = model.generate(given, [tokenizer.prompt], beam_size=1, max_length=40, suppress_blank=True)
        ids = [tokenizer.pieces_of_whisper[each] for each in own.ids]
        count = min(len(ids), len(made.sequences_ids[0]))  # either may stop first: their limits are not the same
        assert count >= 10 or len(ids) == count
        assert made.sequences_ids[0][:count] == ids[:count]


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny_whisper_folder(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"decoder_attention_heads": 4}))
    with pytest.raises(UserError):
        export_ctranslate2(changed(folder), str(other), tmp_path / "out")


def test_the_recipe_names_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        base_of(tmp_path)
    recipe = {"student": {"encoder": {"model": "whisper-base"}}, "tokenizer": {}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert base_of(tmp_path) == base_of(tmp_path / "model") == "whisper-base"
    (tmp_path / "recipe.json").write_text("[]")
    with pytest.raises(UserError):
        base_of(tmp_path)
