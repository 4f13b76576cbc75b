"""Units of a text and their sounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config.schema import TokenizerConfig
from retort.pretrained.whisper import whisper_tokenizer
from retort.text.homophones import readings
from retort.text.sounds import units
from retort.text.tokenizers import CharacterTokenizer, Tokenizer
from tiny_whispers import tiny_whisper_folder

TEXTS = st.text(st.sampled_from("他她它的 行银abé，ー"), max_size=12).map(lambda text: " ".join(text.split()))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level vocabulary, in which a Chinese character is three tokens."""
    folder = tiny_whisper_folder(tmp_path_factory.mktemp("whisper"))
    return whisper_tokenizer(str(folder), TokenizerConfig(kind="whisper"), ())


@given(TEXTS, st.sampled_from(["token", "pinyin", "pinyin_without_tones"]), st.booleans())
def test_units_are_all_tokens_in_order(whisper: Tokenizer, text: str, sounds: str, characters: bool) -> None:
    tokenizer = CharacterTokenizer(["▁", *sorted(set(text) - {" "})]) if characters else whisper
    pieces = tokenizer.pieces(text)
    found = units(text, pieces, sounds)
    assert [number for unit in found for number in range(unit.first, unit.last)] == list(range(len(pieces)))
    for unit in found:
        assert unit.last > unit.first
        assert not unit.parts or " ".join(unit.parts) == unit.sound


def test_homophones_have_one_sound(whisper: Tokenizer) -> None:
    text = "他她它的"
    found = units(text, whisper.pieces(text), "pinyin")
    assert [unit.sound for unit in found] == ["ta1", "ta1", "ta1", "de"]
    assert [unit.last - unit.first for unit in found] == [4, 3, 3, 3]  # the first one with the space before a text
    assert len({unit.sound for unit in units(text, whisper.pieces(text), "token")}) == 4
    assert len({unit.sound for unit in units("买卖", whisper.pieces("买卖"), "pinyin")}) == 2
    assert len({unit.sound for unit in units("买卖", whisper.pieces("买卖"), "pinyin_without_tones")}) == 1


def test_the_words_around_a_character_determine_its_sound() -> None:
    assert readings("银行a行", tones=True) == ["yin2", "hang2", "", "xing2"]
    assert readings("行", tones=False) == ["xing"]


def test_other_tokens_are_their_own_sound() -> None:
    tokenizer = CharacterTokenizer(["▁", "a", "b"])
    first, second = (units(text, tokenizer.pieces(text), "pinyin") for text in ("ab", "ba"))
    assert [unit.sound for unit in first] == [unit.sound for unit in reversed(second)]
