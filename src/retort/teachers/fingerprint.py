"""Fingerprints of a teacher's model and tokenizer, independent of their names and paths."""

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
"""Keys of a model's configuration that describe its origin and do not affect its outputs."""


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hash of the weights and the configuration, 32 hex digits; the path of the files does not matter.

    The pooler is excluded: it is initialised at random where the files lack it, and does not affect hidden states.
    """
    digest = hashlib.sha256(_canonical(_computing(model.config.to_diff_dict())))
    for name, tensor in sorted(model.state_dict().items()):
        if "pooler" not in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def folder_fingerprint(folder: str | Path) -> str:
    """Hash of all files below a folder, names and contents, 32 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of a fast tokenizer with its vocabulary and text processing, 32 hex digits.

    Truncation and padding are excluded, since they are settings of the last call.
    """
    content = parse_json(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):
        content.pop(setting, None)
    return hashlib.sha256(_canonical(content)).hexdigest()[:32]


def unit_read(config: TeacherConfig) -> dict[str, object]:
    """Entry of the teacher's unit in its identity; empty for text, as in stores of earlier versions."""
    return {} if config.unit == "text" else {"unit": config.unit}


def identity_key(identity: Mapping[str, object]) -> str:
    """Hash of an identity without the teacher's name, 16 hex digits."""
    content = {key: value for key, value in identity.items() if key != "model"}
    return hashlib.sha256(_canonical(content)).hexdigest()[:16]


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, default=str).encode()


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _PASSING and not key.startswith("_")}
