from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from retort.decoding.cif import beam_fired
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import ScoredTranscript, TimedText, Transcript, join_nbest, time_candidates
from retort.text.tokenizers import CharacterTokenizer

RATE = 16000


def reading(text: str, score: float, end: float = 1.0) -> ScoredTranscript:
    word = TimedText(text, end - 1.0, end, 0.5)
    return ScoredTranscript(Transcript(text, [word], [word]), score)


scores = st.lists(st.integers(-50, 0).map(float), min_size=1, max_size=4)


@given(parts=st.lists(scores, min_size=1, max_size=4), most=st.integers(1, 6))
def test_the_best_of_the_whole_are_the_best_of_all_combinations(parts: list[list[float]], most: int) -> None:
    readings = [
        [reading(f"s{index}r{rank}", score) for rank, score in enumerate(sorted(part, reverse=True))]
        for index, part in enumerate(parts)
    ]
    joined = join_nbest(readings, " ", most)
    everything = sorted((sum(each) for each in product(*parts)), reverse=True)
    assert [each.score for each in joined] == everything[:most]
    known = {each.transcript.text: each.score for part in readings for each in part}
    for each in joined:
        assert each.score == sum(known[word] for word in each.transcript.text.split())
        assert len(each.transcript.words) == len(parts)
    assert len({each.transcript.text for each in joined}) == len(joined)


def test_equal_texts_are_listed_once_with_the_better_score() -> None:
    tokenizer = CharacterTokenizer(list("▁ab"))
    spelled = [[5, 6], [4, 5, 6], [5, 4, 4, 6], [5, 4, 6], [5]]
    candidates = [
        Hypothesis(ids, [-0.1] * len(ids), [1.0 * place for place in range(len(ids))], score=-1.0 - rank)
        for rank, ids in enumerate(spelled)
    ]
    reported = time_candidates(candidates, 3, tokenizer, 0.04, 2.0, 1.0)
    assert [(each.transcript.text, each.score) for each in reported] == [("ab", -1.0), ("a b", -3.0), ("a", -5.0)]
    assert all(2.0 <= token.start <= token.end <= 3.0 for each in reported for token in each.transcript.tokens)
    assert time_candidates(candidates, 1, tokenizer, 0.04, 2.0, 1.0) == reported[:1]


@pytest.fixture
def wave(tmp_path: Path) -> Path:
    """Seven seconds with two pauses."""
    time = np.arange(7 * RATE) / RATE
    gate = ((time % 2.5) < 2.0) * (np.sin(2 * np.pi * 3 * time) > -0.5)
    noise = 0.002 * np.random.default_rng(0).standard_normal(len(time))
    soundfile.write(tmp_path / "a.wav", 0.3 * gate * np.sin(2 * np.pi * 300 * time) + noise, RATE)
    return tmp_path / "a.wav"


def test_transcripts_of_a_file(recogniser: Recogniser, wave: Path) -> None:
    options = DecodingOptions(beam=6, nbest=4)
    found = recogniser.alternatives(wave, options=options)
    assert len({each.transcript.text for each in found}) == len(found) == 4
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert recogniser.transcribe(wave, options=options) == found[0].transcript
    for each in found:
        times = [time for token in each.transcript.tokens for time in (token.start, token.end)]
        assert times == sorted(times)
        assert times[-1] <= 7.0 + 1e-6
        assert all(0.0 < token.confidence <= 1.0 for token in each.transcript.tokens)
    samples = soundfile.read(wave, dtype="float32")[0]
    assert recogniser.transcribe_samples(samples, options=options) == found[0].transcript


def test_a_long_file_is_read_stretch_by_stretch(recogniser: Recogniser, wave: Path) -> None:
    options = DecodingOptions(beam=5, nbest=3)
    found = recogniser.alternatives(wave, longest=3.0, options=options)
    assert len(found) == 3
    assert found[0].score > found[2].score
    assert found[0].transcript.tokens[-1].start > 4.0
    assert recogniser.transcribe(wave, 3.0, options) == found[0].transcript


def test_greedy_stays_the_default(recogniser: Recogniser, wave: Path) -> None:
    (only,) = recogniser.alternatives(wave)
    assert recogniser.transcribe(wave) == only.transcript
    features = [torch.randn(frames, 20) for frames in (90, 30, 151)]
    plain = [recogniser.search([each])[0] for each in features]
    for hypothesis, each in zip(recogniser.decode(features), plain):
        assert len(each) == 1
        assert hypothesis.ids == each[0].ids


def test_the_search_is_that_of_the_options(recogniser: Recogniser) -> None:
    features = torch.randn(1, 120, 20)
    with torch.inference_mode():
        fired = recogniser.student.fire(recogniser.student.encode(features, torch.tensor([120])))
        expected = beam_fired(recogniser.student, fired, 3)
    assert recogniser.search([features[0]], DecodingOptions(beam=3)) == expected
    assert len(expected[0]) == 3
