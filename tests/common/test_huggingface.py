"""A folder of Hugging Face is data: code in it is not run, nobody is asked, and its weights are safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.common.checksums import seal
from retort.common.errors import UserError
from retort.nn.pretrained import speech_model
from retort.pretrained.hub import open_encoder, open_own_tokenizer, open_tokenizer

MakeBert = Callable[..., Path]


def with_code(folder: Path, name: str, classes: dict[str, object], **more: str) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'PWNED')!r}, 'w')\n")
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "auto_map": classes, **more}))


@pytest.mark.parametrize("opener", [open_tokenizer, lambda name: open_own_tokenizer(Path(name))])
def test_a_tokenizer_with_code_is_refused(
    make_bert: MakeBert, monkeypatch: pytest.MonkeyPatch, opener: Callable[[str], object]
) -> None:
    folder = make_bert()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    with_code(
        folder, "tokenizer_config.json", {"AutoTokenizer": ["evil.T", "evil.T"]}, tokenizer_class="Evil"
    )
    with pytest.raises(UserError) as caught:
        opener(str(folder))
    assert "\n" not in str(caught.value)
    assert not (folder / "PWNED").exists()


def test_a_model_with_code_is_refused(make_bert: MakeBert) -> None:
    folder = make_bert()
    with_code(folder, "config.json", {"AutoModel": "evil.M", "AutoConfig": "evil.C"}, model_type="evil")
    with pytest.raises(UserError):
        open_encoder(str(folder))
    assert not (folder / "PWNED").exists()


def test_pickled_weights_are_refused(make_bert: MakeBert) -> None:
    folder = make_bert()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        open_encoder(str(folder))


def test_weights_that_are_not_finite_are_refused(make_bert: MakeBert) -> None:
    path = make_bert() / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, each in weights.items() if each.dim() == 2)
    weights[name][0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match="not finite"):
        open_encoder(str(path.parent))


def test_a_flipped_bit_is_noticed(make_bert: MakeBert) -> None:
    folder = make_bert()
    seal(folder)
    open_encoder(str(folder))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(
            content[: len(content) // 2]
            + bytes([content[len(content) // 2] ^ 1])
            + content[len(content) // 2 + 1 :]
        )
        with pytest.raises(UserError):
            open_encoder(str(folder))
        (folder / name).write_bytes(content)


def test_an_encoder_of_a_trained_model_names_no_code() -> None:
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "conv_dim": [8],
        "conv_kernel": [10],
        "conv_stride": [5],
        "num_feat_extract_layers": 1,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    speech_model({"model_type": "wav2vec2", "auto_map": {"AutoModel": "evil--evil.M"}, **sizes})
    with pytest.raises(UserError):
        speech_model({"model_type": "evil", **sizes})
