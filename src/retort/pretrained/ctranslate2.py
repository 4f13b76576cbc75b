"""Reader of Whisper models in CTranslate2's format, as used by faster-whisper, with transformers' tensor names."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from retort.common.errors import UserError

VERSION = 6
"""Supported version of the binary format."""
SPECIFICATION = "WhisperSpec"
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_BYTES = (4, 1, 2, 4, 2, 2)
_LONGEST_NAME, _MOST_VARIABLES, _MOST_DIMENSIONS = 1024, 100_000, 8
_REMEDY = "Convert the model again with ct2-transformers-converter, without --quantization or with float16"

Arrays = dict[str, np.ndarray]


class Variables(NamedTuple):
    """The contents of a `model.bin`.

    Attributes:
        specification: the kind of model.
        arrays: name -> values; bfloat16 is widened to float32, everything else is as stored.
        aliases: alias -> name of the array.
    """

    specification: str
    arrays: Arrays
    aliases: dict[str, str]


def read_variables(path: Path) -> Variables:
    """Read all variables of a `model.bin`; the arrays are memory-mapped.

    Raises:
        UserError: the file does not exist, has another version, or is truncated.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None
    reader = _Reader(memoryview(cast(Any, data)), path)
    if (version := reader.number("I")) != VERSION:
        raise UserError(
            f"the version of CTranslate2's format is {version}, but only {VERSION} is supported",
            where=path,
            remedy="Convert the model again with CTranslate2 3 or newer",
        )
    specification = reader.text()
    reader.number("I")  # revision of the specification
    arrays = {}
    for _ in range(reader.count("variables", _MOST_VARIABLES)):
        name = reader.text()
        arrays[name] = reader.array(name)
    aliases = {}
    for _ in range(reader.count("aliases", _MOST_VARIABLES)):
        alias = reader.text()
        aliases[alias] = reader.text()
    return Variables(specification, arrays, aliases)


class Whisper(NamedTuple):
    """Weights and sizes of a Whisper model of CTranslate2.

    Attributes:
        tensors: tensors with the names of transformers' `WhisperForConditionalGeneration`, without the output
            layer, which is tied to the embeddings.
        sizes: arguments of transformers' `WhisperConfig`: d_model, layers, heads, feed-forward sizes, vocabulary,
            mel bins, positions.
    """

    tensors: Arrays
    sizes: dict[str, int]


def read_whisper(path: Path) -> Whisper:
    """Read the weights of a Whisper model (`model.bin`) in float16 or float32, as stored.

    Raises:
        UserError: it cannot be read, is another kind of model, is quantised, or lacks a weight.
    """
    found = read_variables(path)
    if found.specification != SPECIFICATION:
        raise UserError(f"the model is a {found.specification}, not a Whisper model", where=path)
    arrays = found.arrays
    quantised = sorted(name for name in arrays if name.endswith(("weight_scale", "weight_zero")))
    if quantised or any(each.dtype == np.int8 and each.ndim for each in arrays.values()):
        raise UserError("its weights are quantised to int8 or int16", where=path, remedy=_REMEDY)
    tensors = dict(_named(_Layers(arrays, path)))
    return Whisper({name: np.ascontiguousarray(each) for name, each in tensors.items()}, _sizes(arrays, path))


def _sizes(arrays: Arrays, path: Path) -> dict[str, int]:
    def heads(part: str) -> int:
        if (value := arrays.get(f"{part}/num_heads")) is None or value.size != 1 or value.item() < 1:
            raise UserError(f"{part}/num_heads is missing", where=path, remedy=_REMEDY)
        return int(value.item())

    embeddings, convolution = arrays["decoder/embeddings/weight"], arrays["encoder/conv1/weight"]
    return {
        "d_model": embeddings.shape[1],
        "vocab_size": embeddings.shape[0],
        "num_mel_bins": convolution.shape[1],
        "encoder_layers": _layers(arrays, "encoder"),
        "decoder_layers": _layers(arrays, "decoder"),
        "encoder_attention_heads": heads("encoder"),
        "decoder_attention_heads": heads("decoder"),
        "encoder_ffn_dim": arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        "decoder_ffn_dim": arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        "max_source_positions": arrays["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": arrays["decoder/position_encodings/encodings"].shape[0],
    }


def _layers(arrays: Arrays, part: str) -> int:
    number = 0
    while f"{part}/layer_{number}/ffn/linear_0/weight" in arrays:
        number += 1
    return number


class _Layers:
    """Access to variables by name; a missing variable or a wrong shape raises UserError."""

    def __init__(self, arrays: Arrays, path: Path) -> None:
        self.arrays, self.path = arrays, path

    def __call__(self, name: str, dimensions: int) -> np.ndarray:
        value = self.arrays.get(name)
        if value is None or value.ndim != dimensions or value.dtype not in (np.float16, np.float32):
            state = "is missing" if value is None else f"is {value.dtype} {list(value.shape)}"
            raise UserError(f"{name} {state}", where=self.path, remedy=_REMEDY)
        return value

    def linear(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self(f"{name}/weight", 2), self(f"{name}/bias", 1)


def _named(get: _Layers) -> list[tuple[str, np.ndarray]]:
    found: list[tuple[str, np.ndarray]] = []

    def linear(target: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        found.append((f"{target}.weight", weight))
        if bias is not None:
            found.append((f"{target}.bias", bias))

    def norm(source: str, target: str) -> None:
        linear(target, get(f"{source}/gamma", 1), get(f"{source}/beta", 1))

    def joined(source: str, target: str, names: tuple[str, ...]) -> None:
        """CTranslate2 fuses several layers of transformers, stacked by rows; keys have no bias."""
        weight, bias = get.linear(source)
        if len(weight) % len(names) or len(weight) != len(bias):
            raise UserError(f"{source} has {len(weight)} rows", where=get.path, remedy=_REMEDY)
        for name, part, part_bias in zip(names, np.split(weight, len(names)), np.split(bias, len(names))):
            linear(f"{target}.{name}", part, None if name == "k_proj" else part_bias)

    for part in ("encoder", "decoder"):
        for number in range(max(1, _layers(get.arrays, part))):
            source, target = f"{part}/layer_{number}", f"model.{part}.layers.{number}"
            joined(f"{source}/self_attention/linear_0", f"{target}.self_attn", ("q_proj", "k_proj", "v_proj"))
            joined(f"{source}/self_attention/linear_1", f"{target}.self_attn", ("out_proj",))
            norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
            if part == "decoder":
                joined(f"{source}/attention/linear_0", f"{target}.encoder_attn", ("q_proj",))
                joined(f"{source}/attention/linear_1", f"{target}.encoder_attn", ("k_proj", "v_proj"))
                joined(f"{source}/attention/linear_2", f"{target}.encoder_attn", ("out_proj",))
                norm(f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
            joined(f"{source}/ffn/linear_0", target, ("fc1",))
            joined(f"{source}/ffn/linear_1", target, ("fc2",))
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
        norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        positions = get(f"{part}/position_encodings/encodings", 2)
        found.append((f"model.{part}.embed_positions.weight", positions))
    for name in ("conv1", "conv2"):
        linear(f"model.encoder.{name}", get(f"encoder/{name}/weight", 3), get(f"encoder/{name}/bias", 1))
    found.append(("model.decoder.embed_tokens.weight", get("decoder/embeddings/weight", 2)))
    return found


class _Reader:
    """Reader of consecutive little-endian values that checks every length."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise UserError(
                "it is truncated, or not a CTranslate2 model",
                where=self.path,
                remedy="Fetch the file again",
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0])

    def count(self, of: str, most: int) -> int:
        if (found := self.number("I")) > most:
            raise self._broken(f"it states {found} {of}")
        return found

    def text(self) -> str:
        length = self.number("H")
        raw = bytes(self.take(length))
        try:
            return raw.rstrip(b"\0").decode() if length <= _LONGEST_NAME else self._fail("a name is too long")
        except UnicodeDecodeError:
            return self._fail("a name is not text")

    def array(self, name: str) -> np.ndarray:
        rank = self.number("B")
        if rank > _MOST_DIMENSIONS:
            raise self._broken(f"{name} states {rank} dimensions")
        shape = tuple(self.number("I") for _ in range(rank))
        kind, size = self.number("B"), self.number("I")
        if kind >= len(_TYPES):
            raise self._broken(f"{name} has the unknown type {kind}")
        elements = 1
        for each in shape:
            elements *= each
        if elements * _BYTES[kind] != size:
            raise self._broken(f"{name} has {size} bytes, not {elements * _BYTES[kind]}")
        raw = self.take(size)
        if _TYPES[kind] == "bfloat16":
            wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(shape)
        return np.frombuffer(raw, np.dtype(_TYPES[kind]).newbyteorder("<")).reshape(shape)

    def _broken(self, what: str) -> UserError:
        return UserError(
            f"the CTranslate2 model cannot be read: {what}", where=self.path, remedy="Fetch the file again"
        )

    def _fail(self, what: str) -> Any:
        raise self._broken(what)
