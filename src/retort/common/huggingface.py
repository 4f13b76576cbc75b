"""Opening Hugging Face models: their code is never run, and weights are read only from safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retort.common.checksums import verify
from retort.common.json_reader import read_json

_REMEDY = "Train or fetch it again"
_FOREIGN = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
"""Configuration keys that refer to code."""


def open_part(kind: Any, source: str | Path, *, local: bool, **options: Any) -> Any:
    """Open a tokenizer or a configuration.

    Args:
        kind: class of transformers, such as `AutoTokenizer`.
        source: folder, or name on the hub.
        local: use only the folder or the local cache.

    Raises:
        UserError: a file of a folder that Retort wrote is damaged.
        Exception: any error of transformers if it cannot be opened or needs custom code.
    """
    if Path(source).is_dir():
        verify(Path(source), remedy=_REMEDY)
        _refuse_code(Path(source), kind.__name__)
    return kind.from_pretrained(source, local_files_only=local, trust_remote_code=False, **options)


def _refuse_code(folder: Path, kind: str) -> None:
    """Raise a ValueError if a folder has a tokenizer with custom code, because transformers might use another one."""
    path = folder / "tokenizer_config.json"
    if kind == "AutoTokenizer" and path.is_file():
        content = read_json(path)
        if not isinstance(content, dict) or "AutoTokenizer" in (content.get("auto_map") or {}):
            raise ValueError("its tokenizer is Python code in the folder, which is not run")


def open_model(kind: Any, source: str | Path, *, local: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Open a model with transformers' report of its keys, and check that its weights are finite; see :func:`open_part`.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    model, report = open_part(
        kind, source, local=local, use_safetensors=True, output_loading_info=True, **options
    )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"its weights have values that are not finite ({name})")
    return model, report


def model_config(architecture: Mapping[str, Any]) -> Any:
    """The configuration object of `transformers` from configuration values, including `model_type`."""
    from transformers import AutoConfig

    values = {
        key: value for key, value in architecture.items() if not key.startswith("_") and key not in _FOREIGN
    }
    return AutoConfig.for_model(values.pop("model_type"), **values)


def build_model(architecture: Mapping[str, Any], attention: str | None = None) -> Any:
    """Build a model with random weights from the configuration of a trained model.

    Args:
        architecture: configuration values, including `model_type`. Keys that refer to code are ignored.
        attention: transformers' name of the attention implementation, such as `eager`; by default its own choice.

    Raises:
        Exception: any error of transformers for invalid values.
    """
    from transformers import AutoModel

    config = model_config(architecture)
    if attention is not None:
        config._attn_implementation = attention
    return AutoModel.from_config(config, trust_remote_code=False)
