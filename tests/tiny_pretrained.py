"""Tiny pretrained models and packages, as registries carry them."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = [
    f"<|{name}|>"
    for name in (
        "endoftext", "startoftranscript", "en", "zh", "translate", "transcribe",
        "startoflm", "startofprev", "nocaptions", "notimestamps",
    )
]  # fmt: skip
LETTERS = 256
VOCABULARY = LETTERS + len(SPECIAL) + 1501
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def ctranslate2_bytes(
    arrays: dict[str, np.ndarray], specification: str = "WhisperSpec", version: int = 6
) -> bytes:
    """A `model.bin`; arrays of uint16 are written as bfloat16."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text(specification), struct.pack("<II", 3, len(arrays))]
    for name, value in arrays.items():
        kind = TYPES["bfloat16" if value.dtype == np.uint16 else str(value.dtype)]
        raw = value.tobytes()
        head = struct.pack(f"<B{value.ndim}IBI", value.ndim, *value.shape, kind, len(raw))
        parts += [text(name), head, raw]
    parts += [
        struct.pack("<I", 1),
        text("decoder/projection/weight"),
        text("decoder/embeddings/weight"),
    ]
    return b"".join(parts)


def ctranslate2_arrays(weights: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """The weights of transformers' Whisper as CTranslate2 names and joins them."""
    found: dict[str, np.ndarray] = {}

    def put(target: str, *sources: str) -> None:
        parts = [weights[f"{source}.weight"] for source in sources]
        zero = np.zeros(len(parts[0]), parts[0].dtype)
        found[f"{target}/weight"] = np.concatenate(parts)
        found[f"{target}/bias"] = np.concatenate([weights.get(f"{each}.bias", zero) for each in sources])

    def norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = (
            weights[f"{source}.{part}"] for part in ("weight", "bias")
        )

    for part in ("encoder", "decoder"):
        number = 0
        while f"model.{part}.layers.{number}.fc1.weight" in weights:
            target, source = f"{part}/layer_{number}", f"model.{part}.layers.{number}"
            joined = [f"{source}.self_attn.{name}_proj" for name in "qkv"]
            put(f"{target}/self_attention/linear_0", *joined)
            put(f"{target}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            norm(f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if part == "decoder":
                cross = f"{source}.encoder_attn"
                put(f"{target}/attention/linear_0", f"{cross}.q_proj")
                put(f"{target}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                put(f"{target}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{target}/attention/layer_norm", f"{cross}_layer_norm")
            put(f"{target}/ffn/linear_0", f"{source}.fc1")
            put(f"{target}/ffn/linear_1", f"{source}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
            number += 1
        norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        found[f"{part}/position_encodings/encodings"] = weights[f"model.{part}.embed_positions.weight"]
        found[f"{part}/num_heads"] = np.array(heads, np.int16)
    for name in ("conv1", "conv2"):
        put(f"encoder/{name}", f"model.encoder.{name}")
    found["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    return found


def whisper_tokenizer() -> dict[str, Any]:
    """A tokenizer of bytes without timestamps, as faster-whisper ships them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return dict(json.loads(tokenizer.to_str()))


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    """A wheel of version 1.0 that pip takes."""
    stem = f"{name.replace('-', '_')}-1.0"
    about = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents = members | about
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in contents.items()
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for each, data in contents.items():
            wheel.writestr(each, data)
        wheel.writestr(f"{stem}.dist-info/RECORD", record + f"{stem}.dist-info/RECORD,,\n")
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CLIENT = """
import shutil, sys
from pathlib import Path
index, out, name = sys.argv[1:]
stem = name.replace("==", "-").replace("-", "_").replace("_1.0", "-1.0")
found = list(Path(index).glob(stem + "-*.whl"))
if not found:
    sys.exit("ERROR: No matching distribution found for " + name)
shutil.copy(found[0], out)
"""
"""A registry's client as fast as a test needs it: `INDEX OUT PACKAGE==VERSION`."""
