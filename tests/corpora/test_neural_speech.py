from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("onnxruntime")

from retort.common.errors import BadUtterance, UserError
from retort.config.schema import Recipe
from retort.corpora import neural_speech
from retort.corpora.cuts import CheckedCuts
from retort.corpora.kokoro import MODEL, VOICES, Kokoro
from retort.corpora.neural_speech import SynthesisSettings, read_by_kokoro
from retort.corpora.synthetic import Conditions
from retort.training.data import load_data
from tiny_kokoro import SAMPLES, write_tiny_kokoro

ReadRecipe = Callable[..., Recipe]
TEXTS = ["a cab", "dig a fig", "zebra", "on the hill"]
READING = SynthesisSettings("english", VOICES["english"][:4], check="")


@pytest.fixture
def kokoro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The synthesiser in a cache of the test's own, with letters for phonemes."""
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(neural_speech, "phonemise", lambda text, voice: text)
    neural_speech._synthesiser.cache_clear()
    return write_tiny_kokoro(tmp_path / "cache" / MODEL, [*VOICES["english"], *VOICES["mandarin"]])


def read(
    root: Path, texts: list[str] = TEXTS, reading: SynthesisSettings = READING, name: str = "here", **options: Any
) -> CheckedCuts:
    return read_by_kokoro(
        texts, reading, root / "store", root / name, "said", conditions=Conditions(), processes=1, **options
    )


def samples(found: CheckedCuts) -> dict[str, np.ndarray]:
    return {cut.supervisions[0].text: cut.load_audio()[0] for cut in found.cuts}


def clean(root: Path) -> dict[str, np.ndarray]:
    """What the store has, by text."""
    found = {}
    for path in (root / "store").rglob("*.json"):
        found[json.loads(path.read_text())["text"]] = soundfile.read(path.with_suffix(".ogg"))[0]
    return found


class FakeCheck:
    """A recogniser that understands everything but zebras."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def error_rate(self, samples: np.ndarray, text: str) -> tuple[float, str]:
        self.asked.append(text)
        return (0.3, "horse") if text == "zebra" else (0.1, text)


@pytest.fixture
def check(kokoro: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCheck:
    fake = FakeCheck()
    monkeypatch.setattr(neural_speech, "_checker", lambda name, language: fake)
    return fake


def test_every_sentence_is_an_utterance_in_opus(kokoro: Path, tmp_path: Path) -> None:
    found = read(tmp_path)
    assert [cut.supervisions[0].text for cut in found.cuts] == TEXTS
    assert [cut.id for cut in found.cuts] == [f"said-{number:05d}" for number in range(4)]
    assert not found.rejected
    for cut in found.cuts:
        info = soundfile.info(cut.recording.sources[0].source)
        assert (info.subtype, info.samplerate) == ("OPUS", 16000)
        assert info.frames == cut.recording.num_samples
        assert set(cut.supervisions[0].speaker.split("+")) <= set(READING.voices)


def test_a_sentence_sounds_the_same_wherever_it_stands(kokoro: Path, tmp_path: Path) -> None:
    first = samples(read(tmp_path / "one"))
    second = samples(read(tmp_path / "two", [*reversed(TEXTS), "more"]))
    for text in TEXTS:
        np.testing.assert_array_equal(first[text], second[text])
    for text, other in clean(tmp_path / "one").items():
        np.testing.assert_array_equal(other, clean(tmp_path / "two")[text])
    other_seed = samples(read(tmp_path / "three", reading=replace(READING, seed=2)))
    assert any(len(first[text]) != len(other_seed[text]) for text in TEXTS)


def test_it_is_read_once_for_all(kokoro: Path, tmp_path: Path) -> None:
    read(tmp_path, TEXTS[:3])
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.ogg")}
    assert len(made) == 3
    seen: list[tuple[int, int]] = []
    read(tmp_path, TEXTS, name="another", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_it_goes_on_where_it_was_stopped(
    kokoro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = samples(read(tmp_path / "whole"))

    def stop(text: str, voice: str) -> str:
        if text == TEXTS[2]:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(neural_speech, "phonemise", stop)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path)
    first = next((tmp_path / "store").rglob("*.json"))
    first.write_text('{"text": ')  # half written
    monkeypatch.setattr(neural_speech, "phonemise", lambda text, voice: text)
    for text, wave in samples(read(tmp_path)).items():
        np.testing.assert_array_equal(wave, whole[text])


def test_what_is_not_understood_is_dropped_and_listed(kokoro: Path, check: FakeCheck, tmp_path: Path) -> None:
    reading = replace(READING, check="a recogniser")
    found = read(tmp_path, reading=reading)
    assert check.asked == TEXTS
    assert [cut.supervisions[0].text for cut in found.cuts] == [text for text in TEXTS if text != "zebra"]
    (rejected,) = found.rejected
    assert rejected.id == "said-00002"
    assert "30%" in rejected.reason
    assert "horse" in rejected.reason
    # Another limit needs neither synthesis nor recognition.
    assert not read(tmp_path, reading=replace(reading, worst=0.3), name="another").rejected
    assert check.asked == TEXTS
    # What was read without a check is checked later.
    read(tmp_path, ["new one"], name="third")
    read(tmp_path, ["new one"], reading=reading, name="fourth")
    assert check.asked == [*TEXTS, "new one"]


def test_what_cannot_be_spoken_is_listed(kokoro: Path, tmp_path: Path) -> None:
    found = read(tmp_path, ["a cab", "...", "x" * 600])
    assert len(found.cuts) == 1
    assert "no phonemes" in found.rejected[0].reason
    assert "600 phonemes" in found.rejected[1].reason
    with pytest.raises(UserError, match="none of 1 utterances"):
        read(tmp_path, ["..."], name="another")


def test_mixes_and_speeds(kokoro: Path, tmp_path: Path) -> None:
    texts = [f"{'abcdefgh'[number % 8]} cab {'xyz'[number % 3] * (number + 1)}" for number in range(10)]
    read(tmp_path, texts, replace(READING, mixes=0.5, speed=(0.9, 1.1)))
    records = [json.loads(path.read_text()) for path in (tmp_path / "store").rglob("*.json")]
    sizes = {len(record["voice"]) for record in records}
    assert {1} < sizes <= {1, 2, 3}
    assert all(sum(record["voice"].values()) == pytest.approx(1.0, abs=1e-3) for record in records)
    assert all(0.9 <= record["speed"] <= 1.1 for record in records)
    read(tmp_path / "none", texts[:4], replace(READING, mixes=0.0))
    records = [json.loads(path.read_text()) for path in (tmp_path / "none" / "store").rglob("*.json")]
    assert {len(record["voice"]) for record in records} == {1}


def test_a_mix_is_the_mean_of_styles(kokoro: Path) -> None:
    model = Kokoro(kokoro)
    first, second = VOICES["english"][:2]
    one, two, mixed = (
        model.speak("abc", voice, 1.0) for voice in ({first: 1.0}, {second: 1.0}, {first: 0.25, second: 0.75})
    )
    np.testing.assert_allclose(mixed, 0.25 * one + 0.75 * two, rtol=1e-4, atol=1e-4)
    assert len(one) <= 5 * SAMPLES
    with pytest.raises(UserError, match="no voice 'nobody'"):
        model.speak("abc", {"nobody": 1.0}, 1.0)
    with pytest.raises(BadUtterance, match="no phonemes"):
        model.speak("?", {first: 1.0}, 1.0)


def test_voices() -> None:
    assert len(set(VOICES["english"])) == 28
    assert len(set(VOICES["mandarin"])) == 8


def test_a_model_that_is_not_there_or_broken(kokoro: Path, tmp_path: Path) -> None:
    (kokoro / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="retort fetch kokoro-82m"):
        read(tmp_path)
    (kokoro / "retort.json").unlink()
    with pytest.raises(UserError, match="retort fetch kokoro-82m"):
        read(tmp_path)


def test_the_check_must_be_there_before_anything_is_read(kokoro: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="retort fetch whisper-base"):
        read(tmp_path, reading=replace(READING, check="whisper-base"))
    assert not (tmp_path / "store").exists()


def test_recipes(kokoro: Path, check: FakeCheck, read_recipe: ReadRecipe, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three\nzebra\nfour five six\n")
    recipe = read_recipe(
        "data.spoken.engine=kokoro", "data.spoken.voices=28", "data.spoken.transcripts=false",
        f"data.spoken.texts=[{tmp_path / 'text.txt'}]", "data.spoken.sentences=3", "data.spoken.words=[1,3]",
        "data.spoken.check=any", "data.spoken.processes=1", "batches.minimum_seconds=0.1",
    )  # fmt: skip
    for _ in range(2):  # made, and read again
        data = load_data(recipe, tmp_path / "cache", lambda *_: None)
        assert sum(name.startswith("text-") for name in data.train.ids) == 2
        assert [each.reason for each in data.rejected if "horse" in each.reason]
    assert len(check.asked) == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.spoken.engine=festival", "espeak, kokoro"),
        ("data.spoken.speed=[1.2,0.8]", "data.spoken.speed"),
        ("data.spoken.speed=[0.1,1.0]", "data.spoken.speed"),
        ("data.spoken.mixes=1.5", "data.spoken.mixes"),
        ("data.spoken.worst=-1", "data.spoken.worst"),
        ("data.spoken.processes=-1", "data.spoken.processes"),
    ],
)
def test_settings(read_recipe: ReadRecipe, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_recipe(override)


def test_more_voices_than_there_are(kokoro: Path, read_recipe: ReadRecipe, tmp_path: Path) -> None:
    recipe = read_recipe("data.spoken.engine=kokoro", "data.spoken.voices=29")
    with pytest.raises(UserError, match="Choose 1 to 28"):
        load_data(recipe, tmp_path, lambda *_: None)
