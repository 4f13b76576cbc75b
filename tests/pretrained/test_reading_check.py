from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.corpora.reading_check import ReadingCheck, error_rate
from retort.pretrained.whisper_folder import write_whisper_folder


def test_spelling_and_figures_do_not_count() -> None:
    assert error_rate("twenty one dogs don't bark", "21 dogs, do not bark.", "english") == 0.0
    assert error_rate("one two three four", "One, two, tree, four!", "english") == 0.25
    assert error_rate("one two", "one two one two one two", "english") == 2.0
    assert error_rate("one two", "", "english") == 1.0


def test_words_that_sound_the_same_do_not_count() -> None:
    pytest.importorskip("hibari")
    assert error_rate("the colour of the whole theatre", "The color of the hole theater", "english") == 0.0
    assert error_rate("the colour", "the collar", "english") == 0.5


def test_homophones_and_traditional_characters_do_not_count() -> None:
    pytest.importorskip("pypinyin")
    assert error_rate("今天天气很好", "今天天氣很好。", "mandarin") == 0.0
    assert error_rate("他在家", "她在家", "mandarin") == 0.0
    assert error_rate("今天天气很好", "今天天气不错", "mandarin") == pytest.approx(2 / 6)


def test_a_recogniser_of_transformers(ctranslate2_folder: Path, tmp_path: Path, tone_bert: Path) -> None:
    out = tmp_path / "whisper"
    out.mkdir()
    write_whisper_folder(ctranslate2_folder, out)
    check = ReadingCheck(str(out), "english")
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    rate, read = check.error_rate(wave, "ab")
    assert rate >= 0.0
    assert check.error_rate(wave, "ab") == (rate, read)
    with pytest.raises(UserError, match="only English"):
        ReadingCheck(str(out), "mandarin")
    with pytest.raises(UserError, match="not a Whisper model"):
        ReadingCheck(str(tone_bert), "english")
