from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.config.schema import Recipe, SpokenConfig
from retort.training.data import load_data
from retort.training.spoken import draw_sentences

ReadRecipe = Callable[..., Recipe]
TEXT = "a\none two\nOne  Two\nthree four five\nsix seven\none two three four\nnine ten\neight nine\n"


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def config(text: str, sentences: int, seed: int = 1) -> SpokenConfig:
    return SpokenConfig(voices=2, texts=[text], sentences=sentences, words=[2, 3], seed=seed)


def test_sentences_are_distinct_of_the_length_asked_for_and_not_of_validation(text: str) -> None:
    drawn = draw_sentences(config(text, 4), ["SIX SEVEN"])
    assert sorted(drawn) == ["eight nine", "nine ten", "one two", "three four five"]


def test_the_seed_draws(text: str) -> None:
    draws = {tuple(draw_sentences(config(text, 3, seed), [])) for seed in (1, 1, 2, 3, 4)}
    assert 1 < len(draws) <= 4


def test_too_few_sentences(text: str) -> None:
    with pytest.raises(UserError, match=r"5 sentences of 2 to 3 words.*sentences is 9.*Add text"):
        draw_sentences(config(text, 9), [])


def test_mandarin_is_measured_in_characters(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("今天天气很好\n你 好\n咸丰二年壬子恩科进士\n")
    found = SpokenConfig("mandarin", 2, texts=[str(tmp_path / "text.txt")], sentences=2, words=[2, 6])
    assert sorted(draw_sentences(found, [])) == ["今天天气很好", "你 好"]
    found.sentences = 3
    with pytest.raises(UserError, match="2 sentences of 2 to 6 characters"):
        draw_sentences(found, [])


def data_of(recipe: Recipe, root: Path) -> dict[str, list[str]]:
    data = load_data(recipe, root, lambda *_: None)
    assert data.rejected == []
    return {"train": list(data.train.ids), "validation": list(data.validation.ids)}


def test_spoken_sentences_are_added_to_recordings_at_their_own_speed(
    read_recipe: ReadRecipe, text: str, tmp_path: Path
) -> None:
    recipe = read_recipe(
        "data.spoken.voices=2", "data.spoken.transcripts=false", f"data.spoken.texts=[{text}]",
        "data.spoken.sentences=3", "data.spoken.words=[2,3]", "augment.speeds=[0.9,1.0]",
    )  # fmt: skip
    plain = data_of(read_recipe("augment.speeds=[0.9,1.0]"), tmp_path)
    found = data_of(recipe, tmp_path)
    assert found["train"] == [*plain["train"], "text-00000", "text-00001", "text-00002"]
    assert found["validation"] == plain["validation"]


def test_transcripts_are_read_in_place_of_their_recordings_once(
    read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    recipe = read_recipe("data.spoken.voices=2")
    found = data_of(recipe, tmp_path)
    assert all(name.startswith("transcript-") for name in found["train"] + found["validation"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "spoken").rglob("*.flac")}
    assert len(files) == len(found["train"]) + len(found["validation"])
    data_of(recipe, tmp_path)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "spoken").rglob("*.flac")}


def test_what_was_read_aloud_may_be_moved(read_recipe: ReadRecipe, tmp_path: Path) -> None:
    recipe = read_recipe("data.spoken.voices=2")
    found = data_of(recipe, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert data_of(recipe, tmp_path / "there") == found
    assert not (tmp_path / "here").exists()
