"""A recogniser that checks synthetic speech: what it reads is compared with what should have been said."""

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
"""Positions (of 20 ms) of silence behind an utterance that is read without padding to 30 s; with fewer, and now and
then with these too, the model repeats a sentence until it is stopped."""
_SUSPICIOUS = 0.1
"""Error rate above which an utterance is read once more, padded as the model was trained."""
_CODES = {"english": "en", "mandarin": "zh"}


class ReadingCheck:
    """A Whisper model of transformers, greedy.

    Args:
        name: short name, folder, or name on the hub.
        language: `english` or `mandarin`.

    Raises:
        UserError: it cannot be found or opened, is no Whisper model, or does not know the language.
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
                raise ValueError(f"a model of type {kind}, no Whisper model")
            model, _ = open_model(WhisperForConditionalGeneration, source, local=local, dtype=torch.float32)
            tokenizer = open_part(WhisperTokenizerFast, source, local=local)
            extractor = open_part(WhisperFeatureExtractor, source, local=local)
            if extractor.feature_size != model.config.num_mel_bins:
                bins = model.config.num_mel_bins
                raise ValueError(f"its extractor has {extractor.feature_size} bins, the model {bins}")
            return model.eval(), tokenizer, extractor

        remedy = "Give a Whisper model, such as whisper-base, or none: data.spoken.check="
        self.language = language
        self.model, self.tokenizer, self.extractor = load_pretrained(load, name, remedy)
        multilingual = self.model.generation_config.is_multilingual
        if language != "english" and not multilingual:
            raise UserError("it reads English alone", where=name, remedy=remedy)
        code = {"language": _CODES[language], "task": "transcribe"}
        self._options = code if multilingual else {}
        self._longest = self.model.config.max_target_positions - 8  # beside the prompt
        self._positions = self.model.model.encoder.embed_positions.weight.detach().clone()

    def error_rate(self, samples: NDArray[np.float32], text: str) -> tuple[float, str]:
        """What is read wrongly, of words (Mandarin: of syllables without their tone), and what was read.

        Args:
            samples: `(N,)` at 16 kHz.

        Raises:
            BadUtterance: it is longer than what the model reads at once (30 s).
        """
        most = len(self._positions)
        if len(samples) > 320 * most:
            raise BadUtterance(
                f"its {len(samples) / RATE:.1f} s are more than the {most / 50:g} s that are checked"
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
    """Edits by the length of `text`; spelling, figures and homophones do not count as far as they can be undone."""
    from kaldialign import edit_distance

    wanted, found = units(text, language), units(read, language)
    return edit_distance(wanted, found)["total"] / max(len(wanted), 1)


def units(text: str, language: str) -> Sequence[str]:
    """What errors are counted in, so that neither spelling, figures nor homophones count.

    Of English the sounds of words as Whisper's normaliser has them, with numbers as figures one by one; of Mandarin
    syllables without their tone.
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

    # It joins figures in a row, wherever they come from.
    words = re.sub(r"(\d)", r" \1 ", str(EnglishTextNormalizer({})(text))).split()
    return [_sound(word) for word in words]


@lru_cache(100_000)
def _sound(word: str) -> str:
    """Phonemes without stress, the same of `colour` and `color`; the word itself where nothing tells them."""
    if not word.isalpha():
        return word
    try:
        return "".join(each for each in phonemise(word, "a") if each not in "ˈˌ") or word
    except UserError:
        return word
