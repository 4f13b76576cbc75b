"""Checks synthetic speech with a recogniser: compares its hypothesis with the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import BadUtterance, UserError
from retort.common.huggingface import open_model, open_part
from retort.corpora.kokoro import phonemise
from retort.pretrained.hub import load_pretrained, quiet

RATE = 16000
_MARGIN = 100
"""Positions (of 20 ms) of silence after an utterance without padding to 30 s; with fewer, and occasionally with
these, the model repeats a sentence until its maximum length."""
_SUSPICIOUS = 0.1
"""Error rate above which an utterance is recognised again with padding to 30 s."""
_CODES = {"english": "en", "mandarin": "zh"}


class ReadingCheck:
    """A Whisper model of transformers with greedy decoding.

    Args:
        name: short name, folder, or name on the hub.
        language: `english` or `mandarin`.

    Raises:
        UserError: it cannot be found or opened, is not a Whisper model, or does not support the language.
    """

    def __init__(self, name: str, language: str) -> None:
        import torch
        from transformers import (
            AutoConfig,
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
            WhisperTokenizerFast,
        )

        def load(source: str, local: bool) -> tuple[Any, Any, Any]:
            if (kind := open_part(AutoConfig, source, local=local).model_type) != "whisper":
                raise ValueError(f"a model of type {kind}, not a Whisper model")
            model, _ = open_model(WhisperForConditionalGeneration, source, local=local, dtype=torch.float32)
            tokenizer = open_part(WhisperTokenizerFast, source, local=local)
            extractor = open_part(WhisperFeatureExtractor, source, local=local)
            if extractor.feature_size != model.config.num_mel_bins:
                bins = model.config.num_mel_bins
                raise ValueError(f"its extractor has {extractor.feature_size} bins, but the model {bins}")
            return model.eval(), tokenizer, extractor

        remedy = "Choose a Whisper model, such as whisper-base, or none: data.spoken.check="
        self.language = language
        self.model, self.tokenizer, self.extractor = load_pretrained(load, name, remedy)
        multilingual = self.model.generation_config.is_multilingual
        if language != "english" and not multilingual:
            raise UserError("it supports only English", where=name, remedy=remedy)
        code = {"language": _CODES[language], "task": "transcribe"}
        self._options = code if multilingual else {}
        self._longest = self.model.config.max_target_positions - 8  # without the prompt
        self._positions = self.model.model.encoder.embed_positions.weight.detach().clone()

    def error_rate(self, samples: NDArray[np.float32], text: str) -> tuple[float, str]:
        """The error rate of words (Mandarin: of syllables without tone), and the hypothesis.

        Args:
            samples: `(N,)` at 16 kHz.

        Raises:
            BadUtterance: it is longer than the model's maximum (30 s).
        """
        most = len(self._positions)
        if len(samples) > 320 * most:
            raise BadUtterance(
                f"its {len(samples) / RATE:.1f} s exceed the maximum of {most / 50:g} s"
            )
        needed = min(-(-len(samples) // 320) + _MARGIN, most)
        tokens = 8 + 3 * len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) // 2
        best = (np.inf, "")
        for positions in dict.fromkeys((needed, most)):
            read = self._read(samples, positions, tokens)
            best = min(best, (error_rate(text, read, self.language), read))
            if best[0] <= _SUSPICIOUS:
                break
        return best

    def _read(self, samples: NDArray[np.float32], positions: int, tokens: int) -> str:
        import torch

        encoder, config = self.model.model.encoder, self.model.config
        encoder.embed_positions = torch.nn.Embedding(
            positions, self._positions.shape[1], _weight=self._positions[:positions]
        )
        config.max_source_positions = encoder.config.max_source_positions = positions
        features = self.extractor(
            samples, sampling_rate=RATE, max_length=320 * positions, return_tensors="pt"
        ).input_features
        with torch.inference_mode(), quiet():
            ids = self.model.generate(features, max_new_tokens=min(tokens, self._longest), **self._options)
        return str(self.tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


def error_rate(text: str, read: str, language: str) -> float:
    """Edits per unit of `text`, after normalisation of spelling, numbers and homophones."""
    from kaldialign import edit_distance

    wanted, found = units(text, language), units(read, language)
    return edit_distance(wanted, found)["total"] / max(len(wanted), 1)


def units(text: str, language: str) -> Sequence[str]:
    """Units for counting errors, independent of spelling, numbers and homophones.

    For English, sounds of words after Whisper's normaliser, with numbers as single digits; for Mandarin,
    syllables without tone.
    """
    if language == "mandarin":
        try:
            from pypinyin import lazy_pinyin
        except ImportError:
            raise UserError(
                "readings come from pypinyin, which is not installed",
                remedy="Run: pip install 'retort-asr[mandarin]'",
            ) from None
        letters = [each for each in unicodedata.normalize("NFKC", text) if each.isalnum()]
        return [str(each) for each in lazy_pinyin("".join(letters))]
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    # It joins consecutive digits.
    words = re.sub(r"(\d)", r" \1 ", str(EnglishTextNormalizer({})(text))).split()
    return [_sound(word) for word in words]


@lru_cache(100_000)
def _sound(word: str) -> str:
    """Phonemes without stress, equal for `colour` and `color`; the word itself if they are unknown."""
    if not word.isalpha():
        return word
    try:
        return "".join(each for each in phonemise(word, "a") if each not in "ˈˌ") or word
    except UserError:
        return word
