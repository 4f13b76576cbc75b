"""The one place that opens folders of Hugging Face: no code of theirs is run, weights come from safetensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retort.common.checksums import verify
from retort.common.json_reader import read_json

_REMEDY = "Train or fetch it again"
_FOREIGN = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
"""Keys of a configuration that name code to fetch or to import."""


def open_part(kind: Any, source: str | Path, *, local: bool, **options: Any) -> Any:
    """A tokenizer or a configuration.

    Args:
        kind: class of transformers, such as `AutoTokenizer`.
        source: folder, or name on the hub.
        local: take it from the folder or the local cache alone.

    Raises:
        UserError: a file of a folder that Retort wrote is damaged.
        Exception: whatever transformers raises where it cannot be opened, or wants code of the folder's own.
    """
    if Path(source).is_dir():
        verify(Path(source), remedy=_REMEDY)
        _refuse_code(Path(source), kind.__name__)
    return kind.from_pretrained(source, local_files_only=local, trust_remote_code=False, **options)


def _refuse_code(folder: Path, kind: str) -> None:
    """Raise a ValueError where a folder has a tokenizer with code of its own; transformers might take another."""
    path = folder / "tokenizer_config.json"
    if kind == "AutoTokenizer" and path.is_file():
        content = read_json(path)
        if not isinstance(content, dict) or "AutoTokenizer" in (content.get("auto_map") or {}):
            raise ValueError("its tokenizer is Python code in the folder, which is not run")


def open_model(kind: Any, source: str | Path, *, local: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model and transformers' report of its keys; its weights are finite. Else as :func:`open_part`.

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


def build_model(architecture: Mapping[str, Any], attention: str | None = None) -> Any:
    """A model of random weights of the configuration that a trained model carries.

    Args:
        architecture: values of a configuration, `model_type` among them. Those that name code are left out.
        attention: transformers' name of the implementation of attention, such as `eager`; by default its own choice.

    Raises:
        Exception: whatever transformers raises of values that it cannot use.
    """
    from transformers import AutoConfig, AutoModel

    values = {
        key: value for key, value in architecture.items() if not key.startswith("_") and key not in _FOREIGN
    }
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    if attention is not None:
        config._attn_implementation = attention
    return AutoModel.from_config(config, trust_remote_code=False)
