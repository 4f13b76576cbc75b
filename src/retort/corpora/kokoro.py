"""Kokoro-82M, a neural synthesiser, through onnxruntime (extra `kokoro`): phonemes, voices and their mixes, samples.

English phonemes come from hibari-tts, Mandarin ones from misaki; both give the symbols that Kokoro was trained on.
The graph has no random part, so that the same arguments give the same samples.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import BadUtterance, UserError
from retort.common.files import opening_model
from retort.common.json_reader import read_json
from retort.pretrained import cache_folder, locate

MODEL = "kokoro-82m"
SAMPLING_RATE = 24000
LONGEST = 500
"""Maximum number of symbols of an utterance."""
VOICES = {
    "english": (
        *(
            "af_heart",
            "am_michael",
            "bf_emma",
            "bm_george",
            "af_bella",
            "am_fenrir",
            "bf_isabella",
            "bm_fable",
        ),
        *("af_nicole", "am_puck", "bf_alice", "bm_lewis", "af_sarah", "am_echo", "bf_lily", "bm_daniel"),
        *("af_kore", "am_eric", "af_aoede", "am_liam", "af_alloy", "am_onyx", "af_nova", "am_adam"),
        *("af_sky", "am_santa", "af_jessica", "af_river"),
    ),
    "mandarin": (
        *("zf_xiaoxiao", "zm_yunjian", "zf_xiaobei", "zm_yunxi"),
        *("zf_xiaoni", "zm_yunyang", "zf_xiaoyi", "zm_yunxia"),
    ),
}
"""Kokoro's voices of a language, ordered so that the first ones are as varied as possible; the first letter is the accent
(American, British, Mandarin), the second the sex."""
_REMEDY = "Run: pip install 'retort-asr[kokoro]'"


class Kokoro:
    """The Kokoro synthesiser.

    Args:
        folder: folder of the model with `model.onnx`, `vocab.json`, `voices.safetensors`.

    Raises:
        UserError: onnxruntime is not installed, or the files are missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                "speech is synthesised by onnxruntime, which is not installed", remedy=_REMEDY
            ) from None
        from safetensors.numpy import load_file

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        with opening_model(folder, f"Delete it and run: retort fetch {MODEL}"):
            self.symbols: dict[str, int] = read_json(folder / "vocab.json")["vocab"]
            self.voices: dict[str, NDArray[np.float32]] = load_file(folder / "voices.safetensors")
            try:
                self.session = onnxruntime.InferenceSession(
                    str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime has its own exception classes
                raise ValueError(error) from None

    def speak(self, phonemes: str, voice: Mapping[str, float], speed: float) -> NDArray[np.float32]:
        """Synthesise phonemes.

        Args:
            phonemes: symbols of Kokoro; unknown ones are ignored.
            voice: names of voices with weights that sum to 1, by which their style vectors are averaged.
            speed: 1 is the default, 2 is twice as fast.

        Returns:
            `(N,)` at 24 kHz, with silence removed at both ends.

        Raises:
            BadUtterance: there are no phonemes, or more than the model's maximum.
            UserError: the voice does not exist.
        """
        ids = [self.symbols[symbol] for symbol in phonemes if symbol in self.symbols]
        if not any(symbol.isalpha() for symbol in phonemes) or not ids:
            raise BadUtterance("it contains no phonemes")
        if len(ids) > LONGEST:
            raise BadUtterance(f"its {len(ids)} phonemes exceed the maximum of {LONGEST}")
        if unknown := [name for name in voice if name not in self.voices]:
            raise UserError(f"{MODEL} has no voice '{unknown[0]}'", remedy="Choose one from its list")
        style = sum(weight * self.voices[name][len(ids)] for name, weight in voice.items())
        feed = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": np.asarray(style, np.float32)[None],
            "speed": np.array([speed], np.float32),
        }
        samples = np.asarray(self.session.run(None, feed)[0], np.float32).reshape(-1)
        return _trimmed(samples)


def kokoro_folder() -> Path:
    """The folder of the model.

    Raises:
        UserError: the model was not fetched.
    """
    if (folder := locate(MODEL)) is None:
        raise UserError(f"not in {cache_folder()}", where=MODEL, remedy=f"Run: retort fetch {MODEL}")
    return folder


def phonemise(text: str, voice: str) -> str:
    """Convert a text to Kokoro's symbols, in the accent of a voice.

    Raises:
        UserError: the required package is not installed.
        BadUtterance: the text cannot be converted.
    """
    try:
        return _reader(voice[0])(text)
    except UserError:
        raise
    except Exception as error:  # both packages raise arbitrary exceptions for unusual text
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise BadUtterance(f"it cannot be converted to phonemes ({reason})") from None


@cache
def _reader(accent: str) -> Callable[[str], str]:
    return _mandarin() if accent == "z" else _english(british=accent == "b")


def _english(british: bool) -> Callable[[str], str]:
    hibari = _import("hibari.g2p", "hibari-tts")
    read = hibari.G2P(british=british)
    # In lower case, the pronoun would be read as a letter.
    return lambda text: str(read(re.sub(r"\bi\b", "I", text)))


def _mandarin() -> Callable[[str], str]:
    jieba = _import("jieba", "jieba")
    jieba.setLogLevel(logging.WARNING)
    cache_folder().mkdir(parents=True, exist_ok=True)
    jieba.dt.tmp_dir = str(
        cache_folder()
    )  # the default is in the system's temporary folder
    read = _import("misaki.zh", "misaki").ZHG2P()
    return lambda text: str(read(text)[0])


def _import(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError:
        raise UserError(
            f"phonemes come from {package}, which is not installed or lacks a package", remedy=_REMEDY
        ) from None


def _trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Trim to 30 ms before the first and after the last sample above 1 % of the peak."""
    if not samples.size or not np.isfinite(samples).all() or not (peak := np.abs(samples).max()):
        raise BadUtterance("the synthesiser produced no speech")
    loud = np.flatnonzero(np.abs(samples) > 0.01 * peak)
    pad = int(0.03 * SAMPLING_RATE)
    return samples[max(loud[0] - pad, 0) : loud[-1] + pad]
