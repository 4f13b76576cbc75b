"""Reliability of confidences against slow references, and the calibration that is fitted and stored."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.decoding.confidence import AS_DECODED, Calibration
from retort.decoding.transcript import TimedText, Transcript
from retort.evaluation.reliability import (
    BINS,
    Reliability,
    WordOutcomes,
    correct_words,
    fit_calibration,
    reliability,
    word_outcomes,
)


def outcomes(count: int, seed: int, temperature: float = 1.0, bias: float = 0.0) -> WordOutcomes:
    """Words whose share of correct ones is what the calibration makes of their confidences."""
    draw = np.random.default_rng(seed)
    confidences = draw.beta(3.0, 1.0, size=count)
    truth = np.array([Calibration(temperature, bias)(each) for each in confidences])
    return WordOutcomes(confidences, draw.random(count) < truth, [f"s{each}" for each in draw.integers(20, size=count)])


def slow(found: WordOutcomes) -> tuple[float, float]:
    """Both measures, word by word."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    own = most = 0.0
    share = sum(map(bool, found.correct)) / len(found.correct)
    for confidence, right in zip(found.confidences.tolist(), found.correct.tolist()):
        bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, right))
        own -= math.log2(confidence if right else 1.0 - confidence)
        most -= math.log2(share if right else 1.0 - share)
    gaps = [abs(sum(c for c, _ in each) - sum(r for _, r in each)) for each in bins.values()]
    return sum(gaps) / len(found.correct), (most - own) / most


@pytest.mark.parametrize("seed", range(5))
def test_measures_against_the_slow_ones(seed: int) -> None:
    found = outcomes(300, seed)
    result = reliability(found)
    assert result is not None
    ece, nce = slow(found)
    assert (result.ece, result.nce) == (pytest.approx(ece), pytest.approx(nce))
    assert result.ece_range[0] <= result.ece_range[1]
    assert result.nce_range[0] <= nce <= result.nce_range[1]
    assert sum(count for count, _, _ in result.bins) == result.words == 300
    assert Reliability.from_dict(json.loads(json.dumps(asdict(result)))) == result


def test_no_words_and_words_of_one_kind() -> None:
    assert reliability(WordOutcomes(np.zeros(0), np.zeros(0, dtype=bool), [])) is None
    sure = reliability(WordOutcomes(np.ones(4), np.ones(4, dtype=bool), ["a"] * 4))
    assert sure is not None
    assert (sure.ece, sure.nce) == (0.0, 0.0)


def test_a_calibration_is_found_again() -> None:
    found = outcomes(20_000, 0, temperature=2.0, bias=-0.5)
    fitted = fit_calibration(found)
    assert fitted.temperature == pytest.approx(2.0, rel=0.1)
    assert fitted.bias == pytest.approx(-0.5, abs=0.1)
    held_out = outcomes(5_000, 1, temperature=2.0, bias=-0.5)
    scaled = replace(held_out, confidences=np.array([fitted(each) for each in held_out.confidences]))
    before, after = reliability(held_out), reliability(scaled)
    assert before is not None
    assert after is not None
    assert after.ece < 0.3 * before.ece
    assert after.nce > before.nce


def test_too_few_words_for_a_calibration() -> None:
    for found in (outcomes(10, 0), replace(outcomes(500, 0), correct=np.ones(500, dtype=bool))):
        with pytest.raises(UserError):
            fit_calibration(found)


def test_the_order_of_confidences_stays() -> None:
    calibration = Calibration(1.7, -0.4)
    values = [calibration(each / 50) for each in range(51)]
    assert values == sorted(values)
    assert all(0.0 <= each <= 1.0 for each in values)
    assert AS_DECODED(0.3) == pytest.approx(0.3)
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    transcript = Transcript("a", [TimedText("a", 0.0, 1.0, 0.5)], [TimedText("a", 0.0, 1.0, 0.5)])
    assert calibration.words(transcript).words[0].confidence == pytest.approx(1 / (1 + math.exp(0.4)))
    assert calibration.words(transcript).tokens == transcript.tokens


@pytest.mark.parametrize("content", [{}, [1], {"temperature": 0, "bias": 0}, {"temperature": "x", "bias": 0},
                                     {"temperature": 1, "bias": float("nan")}])  # fmt: skip
def test_a_calibration_that_cannot_be(content: object) -> None:
    with pytest.raises((ValueError, KeyError)):
        Calibration.from_dict(content)  # type: ignore[arg-type]


def test_which_words_are_correct() -> None:
    assert correct_words(["the", "cat", "sat"], ["the", "bat", "sat", "on"]) == [True, False, True, False]
    assert correct_words(["a"], []) == []
    found = word_outcomes(
        {"u": ["the", "cat"], "v": []},
        {"u": [TimedText("the", 0, 1, 0.9), TimedText("", 0, 1, 0.1), TimedText("bat", 0, 1, 0.4)], "v": []},
        {"u": "anna", "v": "bob"},
    )
    assert found.confidences.tolist() == [0.9, 0.4]
    assert found.correct.tolist() == [True, False]
    assert list(found.speakers) == ["anna", "anna"]


def test_a_stored_calibration_is_used(tmp_path: Path) -> None:
    from retort.decoding.recogniser import load, store_calibration
    from tiny_whispers import tiny_whisper_folder, tiny_whisper_recogniser

    recogniser = tiny_whisper_recogniser(tiny_whisper_folder(tmp_path / "whisper"))
    recogniser.save(tmp_path / "model")
    assert load(tmp_path / "model").calibration == AS_DECODED
    store_calibration(tmp_path / "model", confidence=Calibration(2.0, -1.0))
    opened = load(tmp_path / "model")
    samples = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    plain = recogniser.transcribe_samples(samples, vad="none")
    found = opened.transcribe_samples(samples, vad="none")
    assert found.text == plain.text
    assert found.words
    assert [each.confidence for each in found.words] == pytest.approx(
        [Calibration(2.0, -1.0)(each.confidence) for each in plain.words]
    )
    assert opened.fingerprint() != recogniser.fingerprint()
