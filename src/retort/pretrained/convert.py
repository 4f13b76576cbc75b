"""Conversion of the files of packages to folders of transformers or the synthesiser, one function per format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.huggingface import open_part
from retort.pretrained.whisper_folder import write_whisper_folder

VOICE_SHAPE = (510, 256)
"""Shape of a Kokoro voice: a style vector for every number of symbols of an utterance."""


def take_as_it_is(files: Path, out: Path) -> None:
    """Use the files unchanged: a folder of transformers, or other data."""
    for each in files.iterdir():
        shutil.move(each, out / each.name)


def write_gguf_folder(files: Path, out: Path) -> None:
    """Convert a causal language model of llama.cpp, dequantised to float16, with its tokenizer.

    Raises:
        UserError: transformers or gguf cannot read it.
    """
    import torch

    (path,) = files.glob("*.gguf")
    try:
        model, tokenizer = _open_gguf(path)
    except Exception as error:  # gguf, transformers and tokenizers raise various exceptions
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise UserError(f"cannot be converted: {reason}", where=path.name) from None
    weights = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    from safetensors.torch import save_file

    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors creates files with mode 600
    passing = ("quantization_config", "_name_or_path")  # the latter is a local path
    config = {key: value for key, value in model.config.to_dict().items() if key not in passing}
    config |= {"architectures": [type(model).__name__], "dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(out)


def _open_gguf(path: Path) -> tuple[Any, Any]:
    import gguf
    import transformers
    from tokenizers import pre_tokenizers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Newer releases of transformers keep the weights quantised by default.
    packed = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packed(dequantize=True)} if packed else {}
    model = open_part(transformers.AutoModelForCausalLM, path.parent, local=True, gguf_file=path.name, **options)
    tokenizer = open_part(transformers.AutoTokenizer, path.parent, local=True, gguf_file=path.name)
    fields = gguf.GGUFReader(path).fields
    if "tokenizer.ggml.pre" in fields and fields["tokenizer.ggml.pre"].contents() == "smollm":
        # transformers does not read this key; digits are single tokens in this family.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return model, tokenizer


def write_kokoro_folder(files: Path, out: Path) -> None:
    """Copy the ONNX graph and the symbols of Kokoro, and write all voices to `voices.safetensors`.

    Raises:
        UserError: a voice has an invalid shape.
    """
    import numpy as np
    from safetensors.numpy import save_file

    voices = {}
    for path in sorted((files / "voices").glob("*.bin")):
        values = np.fromfile(path, "<f4")
        if values.size != VOICE_SHAPE[0] * VOICE_SHAPE[1] or not np.isfinite(values).all():
            raise UserError(f"it is not a voice of {VOICE_SHAPE[0]} style vectors", where=path.name)
        voices[path.stem] = values.reshape(VOICE_SHAPE)
    save_file(voices, out / "voices.safetensors")
    (out / "voices.safetensors").chmod(0o644)
    for name in ("model.onnx", "vocab.json"):
        shutil.move(files / name, out / name)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "ctranslate2-whisper": write_whisper_folder,
    "huggingface": take_as_it_is,
    "files": take_as_it_is,
    "gguf": write_gguf_folder,
    "kokoro": write_kokoro_folder,
}
"""Converters by format; arguments are the folder of the entry's files and the empty output folder."""
