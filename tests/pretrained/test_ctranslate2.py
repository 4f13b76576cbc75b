from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retort.common.errors import UserError
from retort.pretrained.ctranslate2 import read_variables, read_whisper
from retort.pretrained.whisper_folder import write_whisper_folder
from tiny_pretrained import SPECIAL, VOCABULARY, ctranslate2_bytes, whisper_tokenizer

Arrays = dict[str, np.ndarray]


@pytest.fixture
def converted(ctranslate2_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "converted"
    out.mkdir()
    write_whisper_folder(ctranslate2_folder, out)
    return out


def test_every_weight_is_that_of_transformers(ctranslate2_folder: Path, tiny_whisper: Any) -> None:
    found = read_whisper(ctranslate2_folder / "model.bin")
    expected = tiny_whisper.state_dict()
    assert found.tensors.keys() == expected.keys() - {"proj_out.weight"}
    for name, value in found.tensors.items():
        np.testing.assert_array_equal(value, expected[name].numpy())
    assert found.sizes["encoder_ffn_dim"] == 32
    assert found.sizes["decoder_ffn_dim"] == 24
    assert found.sizes["vocab_size"] == VOCABULARY


def test_transformers_opens_the_folder_and_computes_the_same(converted: Path, tiny_whisper: Any) -> None:
    from transformers import WhisperForConditionalGeneration, WhisperModel

    for kind in (WhisperForConditionalGeneration, WhisperModel):
        model, report = kind.from_pretrained(converted, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    model = WhisperForConditionalGeneration.from_pretrained(converted).eval()
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[257, 258, 261, 265, 70, 80]])
    with torch.no_grad():
        own, other = (each(features, decoder_input_ids=tokens).logits for each in (model, tiny_whisper))
    torch.testing.assert_close(own, other)
    assert model.generate(features, max_new_tokens=3).shape[0] == 1


def test_half_precision_stays(ctranslate2_folder: Path, tiny_arrays: Arrays, tmp_path: Path) -> None:
    halves = {name: each.astype(np.float16) if each.ndim else each for name, each in tiny_arrays.items()}
    (ctranslate2_folder / "model.bin").write_bytes(ctranslate2_bytes(halves))
    out = tmp_path / "half"
    out.mkdir()
    write_whisper_folder(ctranslate2_folder, out)
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(out)
    assert model.dtype == torch.float16
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    (tmp_path / "model.bin").write_bytes(
        ctranslate2_bytes({"x": (values.view(np.uint32) >> 16).astype(np.uint16)})
    )
    found = read_variables(tmp_path / "model.bin")
    np.testing.assert_allclose(found.arrays["x"], values, rtol=0.01)
    assert found.aliases == {"decoder/projection/weight": "decoder/embeddings/weight"}


def test_the_tokenizer_has_timestamps_and_the_special_ids(converted: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, WhisperTokenizerFast

    for kind in (AutoTokenizer, PreTrainedTokenizerFast, WhisperTokenizerFast):
        tokenizer = kind.from_pretrained(converted)
        assert len(tokenizer) == VOCABULARY
        assert tokenizer.convert_tokens_to_ids("<|0.00|>") == VOCABULARY - 1501
        assert tokenizer.convert_tokens_to_ids("<|30.00|>") == VOCABULARY - 1
        ids = tokenizer("a bé", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([*ids, 256], skip_special_tokens=True) == "a bé"
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation["no_timestamps_token_id"] == 256 + SPECIAL.index("<|notimestamps|>")
    assert generation["decoder_start_token_id"] == 257
    assert generation["suppress_tokens"] == [1, 2]


def test_of_many_words_it_is_multilingual(ctranslate2_folder: Path, converted: Path, tmp_path: Path) -> None:
    assert not json.loads((converted / "generation_config.json").read_text())["is_multilingual"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: ctranslate2_bytes(arrays, version=4), "is 4, but only"),
        (lambda arrays: ctranslate2_bytes(arrays, specification="TransformerSpec"), "not a Whisper"),
        (lambda arrays: ctranslate2_bytes(arrays)[:-30], "truncated"),
        (lambda arrays: ctranslate2_bytes(arrays)[:3000], "truncated"),
        (lambda arrays: b"", "model.bin"),
        (lambda arrays: b"PK\3\4 this is another file altogether", "version"),
        (lambda arrays: struct.pack("<IH", 6, 65535) + b"x" * 70000, "name"),
        (
            lambda arrays: ctranslate2_bytes(
                {
                    name: each.astype(np.int8) if name.endswith("fc1/weight") or "linear_0/weight" in name else each
                    for name, each in arrays.items()
                }
            ),
            "int8",
        ),
        (
            lambda arrays: ctranslate2_bytes(
                {
                    **arrays,
                    "encoder/layer_0/ffn/linear_0/weight": arrays["encoder/layer_0/ffn/linear_0/weight"].astype(np.int16),
                    "encoder/layer_0/ffn/linear_0/weight_scale": np.ones(1, np.float32),
                }
            ),
            "int8 or int16",
        ),
        (
            lambda arrays: ctranslate2_bytes(
                {name: each for name, each in arrays.items() if name != "encoder/conv1/weight"}
            ),
            "encoder/conv1/weight",
        ),
        (
            lambda arrays: ctranslate2_bytes(
                {name: each for name, each in arrays.items() if not name.endswith("num_heads")}
            ),
            "num_heads",
        ),
    ],
)  # fmt: skip
def test_other_files_are_one_line(
    ctranslate2_folder: Path, tiny_arrays: Arrays, tmp_path: Path, change: Any, words: str
) -> None:
    (ctranslate2_folder / "model.bin").write_bytes(change(tiny_arrays))
    with pytest.raises(UserError, match=words) as caught:
        write_whisper_folder(ctranslate2_folder, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json"])
def test_a_missing_file(ctranslate2_folder: Path, tmp_path: Path, name: str) -> None:
    (ctranslate2_folder / name).unlink()
    with pytest.raises(UserError, match=name):
        write_whisper_folder(ctranslate2_folder, tmp_path)


def test_the_tokenizer_of_another_model(ctranslate2_folder: Path, tmp_path: Path) -> None:
    tokenizer = whisper_tokenizer()
    tokenizer["added_tokens"][-1]["id"] += 1
    (ctranslate2_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        write_whisper_folder(ctranslate2_folder, tmp_path)
    (ctranslate2_folder / "tokenizer.json").write_text("[1")
    with pytest.raises(UserError, match="not JSON"):
        write_whisper_folder(ctranslate2_folder, tmp_path)
