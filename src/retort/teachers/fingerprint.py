"""What makes two teachers the same: fingerprints of a model and of its tokenizer, whatever they are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from retort.common.json_reader import parse_json
from retort.config.schema import TeacherConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_PASSING = {"transformers_version", "name_or_path", "architectures", "dtype", "torch_dtype"}
"""Parts of a model's configuration that say where it is from, not what it computes."""


def model_fingerprint(model: PreTrainedModel) -> str:
    """32 hex digits of the weights and of the configuration; where the files lie does not matter.

    The pooler is left out: it is made at random where the files lack it, and no hidden state passes it.
    """
    digest = hashlib.sha256(_canonical(_computing(model.config.to_diff_dict())))
    for name, tensor in sorted(model.state_dict().items()):
        if "pooler" not in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def folder_fingerprint(folder: str | Path) -> str:
    """32 hex digits of all files below a folder: their names and what is in them."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """32 hex digits of a fast tokenizer: its vocabulary and all that it does to a text before that.

    Truncation and padding are left out: they are settings of the last call, the longest input is the teacher's.
    """
    content = parse_json(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):
        content.pop(setting, None)
    return hashlib.sha256(_canonical(content)).hexdigest()[:32]


def unit_read(config: TeacherConfig) -> dict[str, object]:
    """What an identity says of the unit that a teacher reads; of text nothing, for once there was no other."""
    return {} if config.unit == "text" else {"unit": config.unit}


def identity_key(identity: Mapping[str, object]) -> str:
    """16 hex digits that name what an identity says, the teacher's name left out."""
    content = {key: value for key, value in identity.items() if key != "model"}
    return hashlib.sha256(_canonical(content)).hexdigest()[:16]


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, default=str).encode()


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _PASSING and not key.startswith("_")}
