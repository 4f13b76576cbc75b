"""A synthesiser of Kokoro's form in a few bytes: every symbol is a buzz of 25 ms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FLOAT, INT64 = 1, 7
SAMPLES = 600
"""At 24 kHz, of a symbol."""


def _number(value: int) -> bytes:
    parts = []
    while True:
        value, low = value >> 7, value & 127
        parts.append(low | (128 if value else 0))
        if not value:
            return bytes(parts)


def _field(tag: int, value: int | str | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return _number(tag << 3) + _number(value)
    raw = value.encode() if isinstance(value, str) else value
    return _number(tag << 3 | 2) + _number(len(raw)) + raw


def _node(operator: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    parts = [_field(1, each) for each in inputs] + [_field(2, output), _field(4, operator)]
    for name, value in attributes.items():
        parts.append(_field(5, _field(1, name) + _field(3, value) + _field(20, 2)))
    return _field(1, b"".join(parts))


def _tensor(name: str, value: np.ndarray) -> bytes:
    kind = FLOAT if value.dtype == np.float32 else INT64
    dims = b"".join(_field(1, each) for each in value.shape)
    return _field(5, dims + _field(2, kind) + _field(8, name) + _field(9, value.tobytes()))


def _value(tag: int, name: str, kind: int, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(each, int) else 2, each)) for each in shape)
    return _field(tag, _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims))))


def _graph() -> bytes:
    buzz = np.sin(np.arange(SAMPLES) * 0.3).astype(np.float32)[None]
    graph = b"".join(
        [
            _node("Cast", ["tokens"], "numbers", to=FLOAT),
            _node("Reshape", ["numbers", "column"], "rows"),
            _node("Mul", ["rows", "buzz"], "voiced"),
            _node("ReduceMean", ["style"], "colour", keepdims=0),
            _node("Mul", ["voiced", "colour"], "coloured"),
            _node("Div", ["coloured", "speed"], "slowed"),
            _node("Reshape", ["slowed", "flat"], "audio"),
            _field(2, "tiny"),
            _tensor("buzz", buzz),
            _tensor("column", np.array([-1, 1])),
            _tensor("flat", np.array([-1])),
            _value(11, "tokens", INT64, (1, "length")),
            _value(11, "style", FLOAT, (1, 256)),
            _value(11, "speed", FLOAT, (1,)),
            _value(12, "audio", FLOAT, ("samples",)),
        ]
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def write_tiny_kokoro(folder: Path, voices: list[str]) -> Path:
    """A folder as `retort fetch kokoro-82m` leaves it; letters are the symbols."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(_graph())
    letters = {letter: number + 1 for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    (folder / "vocab.json").write_text(json.dumps({"vocab": letters}))
    styles = {name: np.full((510, 256), 0.2 + 0.1 * number, np.float32) for number, name in enumerate(voices)}
    save_file(styles, folder / "voices.safetensors")
    (folder / "retort.json").write_text('{"from": ["a test"]}')
    return folder
