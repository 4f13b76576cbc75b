from __future__ import annotations

import array
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retort.audio.samples import as_path, as_wave
from retort.common.errors import BadUtterance

WAVE = (0.9 * np.sin(np.arange(4000) / 20)).astype(np.float32)
COARSE = {"uint8": 0.02, "int8": 0.02, "int16": 1e-4, "bfloat16": 0.01, "float16": 1e-3}


def forms() -> dict[str, Any]:
    sixteen = np.round(WAVE * 32767).astype(np.int16)
    return {
        "float32": WAVE,
        "float64": WAVE.astype(np.float64),
        "float16": WAVE.astype(np.float16),
        "int16": sixteen,
        "big-endian int16": sixteen.astype(">i2"),
        "int32": (WAVE.astype(np.float64) * 2**31).astype(np.int32),
        "uint8": np.round(WAVE * 127 + 128).astype(np.uint8),
        "int8": np.round(WAVE * 127).astype(np.int8),
        "column": WAVE[:, None],
        "row": WAVE[None],
        "list": WAVE.tolist(),
        "tuple": tuple(WAVE.tolist()),
        "array": array.array("h", sixteen.tolist()),
        "tensor": torch.tensor(WAVE),
        "with gradient": torch.tensor(WAVE, requires_grad=True),
        "bfloat16": torch.tensor(WAVE).bfloat16(),
        "tensor of int16": torch.tensor(sixteen),
        "backwards": WAVE[::-1].copy()[::-1],
        "strided": np.repeat(WAVE, 2)[::2],
        "read-only": np.frombuffer(WAVE.tobytes(), np.float32),
        "masked": np.ma.masked_array(WAVE),
    }


@pytest.mark.parametrize("name", forms())
def test_every_form_is_the_same_wave(name: str) -> None:
    wave = as_wave(forms()[name], "here")
    assert wave.dtype == np.float32
    assert wave.shape == WAVE.shape
    assert wave.flags.c_contiguous
    np.testing.assert_allclose(wave, WAVE, atol=COARSE.get(name.split()[-1], 1e-4))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((5, 2), np.float32), ("(5, 2)", "float32")),
        (np.zeros((2, 5), np.int16), ("(2, 5)", "int16")),
        (torch.zeros(1, 1, 5), ("(1, 1, 5)", "float32")),
        (np.float32(1.0), ("()", "float32")),
        (np.zeros(5, np.uint16), ("(5,)", "uint16")),
        (np.zeros(5, np.int64), ("(5,)", "int64")),
        ([1, 2, 3], ("(3,)", "int64")),
        (np.zeros(5, bool), ("(5,)", "bool")),
        (np.zeros(5, complex), ("(5,)", "complex128")),
        (np.zeros(5, object), ("(5,)", "object")),
        (torch.zeros(5, dtype=torch.complex64), ("5", "complex64")),
        ([[1.0], [1.0, 2.0]], ("list",)),
        ({"array": WAVE, "sampling_rate": 16000}, ("dict",)),
        (None, ("NoneType",)),
        (io.BytesIO(b"RIFF"), ("BytesIO",)),
    ],
)
def test_what_is_refused_is_named(samples: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(BadUtterance) as caught:
        as_wave(samples, "here")
    assert all(word in str(caught.value) for word in ("here", *words))


@pytest.mark.parametrize("samples", [[], np.zeros(0), torch.zeros(0), np.zeros(0, np.int16)])
def test_nothing_is_an_empty_wave(samples: Any) -> None:
    assert as_wave(samples, "here").shape == (0,)


def test_paths() -> None:
    assert as_path(b"a.wav") == as_path(Path("a.wav")) == as_path("a.wav") == "a.wav"
    assert as_path(WAVE) is None
    for wrong in ("https://example.org/a.wav", "s3://bucket/a.wav", "a\0.wav"):
        with pytest.raises(BadUtterance, match=r"address|null"):
            as_path(wrong)
    with pytest.raises(BadUtterance, match=r"https://example\.org/a\.wav"):
        as_path("https://example.org/a.wav")
