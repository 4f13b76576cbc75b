from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from retort.corpora.cuts import make_cut, open_recording
from retort.corpora.features import store_features
from retort.corpora.open_cuts import open_cuts
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.evaluation import recognise as module
from retort.evaluation.recognise import recognise, write_hypotheses

Say = Callable[..., np.ndarray]


@pytest.fixture
def cuts(corpus: Path) -> CutSet:
    return open_cuts(corpus / "train").cuts


def test_every_utterance_has_a_hypothesis(recogniser: Recogniser, cuts: CutSet) -> None:
    seen: list[tuple[int, int]] = []
    found = recognise(recogniser, cuts, lambda done, total: seen.append((done, total)))
    assert found.hypotheses.keys() == found.references.keys() == found.ctc.keys() == set(cuts.ids)
    assert seen[-1] == (24, 24)
    for cut in cuts:
        assert found.references[cut.id] == cut.supervisions[0].text.lower()
        assert found.speakers[cut.id] == cut.supervisions[0].speaker
    assert sum(map(len, found.hypotheses.values())) > 0
    assert found.decoding_seconds > 0
    assert found.real_time_factor == pytest.approx(found.decoding_seconds / sum(cut.duration for cut in cuts))


def test_batches_do_not_change_what_is_recognised(
    recogniser: Recogniser, cuts: CutSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = recognise(recogniser, cuts)
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.1)
    alone = recognise(recogniser, cuts)
    assert together.hypotheses == alone.hypotheses
    assert together.ctc == alone.ctc


def test_stored_features_give_the_same(recogniser: Recogniser, cuts: CutSet, tmp_path: Path) -> None:
    stored, _ = store_features(cuts, tmp_path, recogniser.features)
    assert recognise(recogniser, stored).hypotheses == recognise(recogniser, cuts).hypotheses


def test_what_evaluate_says_transcribe_says_too(recogniser: Recogniser, cuts: CutSet) -> None:
    found = recognise(recogniser, cuts)
    for cut in list(cuts)[:4]:
        recognised = recogniser.transcribe(cut.recording.sources[0].source)
        assert recogniser.normalise(recognised.text) == found.hypotheses[cut.id]


@pytest.mark.parametrize("lead", [0.0, 5.0])
def test_a_long_recording_is_divided_as_transcribe_divides_it(
    recogniser: Recogniser, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, lead: float
) -> None:
    quiet = 1e-3 * np.random.default_rng(0).standard_normal(40000)
    parts = [
        np.zeros(int(lead * 16000)),
        *(part for seed in range(14) for part in (say("abc de fgh", seed), quiet)),
    ]
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), 16000, subtype="FLOAT")
    cuts = [make_cut("long", open_recording("long", tmp_path / "a.wav"), "abc", "s")]
    soundfile.write(tmp_path / "b.wav", say("abc de"), 16000, subtype="FLOAT")
    cuts.append(make_cut("short", open_recording("short", tmp_path / "b.wav"), "abc", "s"))
    for options in (DecodingOptions(), DecodingOptions(beam=3, nbest=2)):
        for seconds in (120.0, 5.0):
            monkeypatch.setattr(module, "BATCH_SECONDS", seconds)
            found = recognise(recogniser, CutSet.from_cuts(cuts), options=options)
            recognised = recogniser.transcribe(tmp_path / "a.wav", options=options)
            assert found.hypotheses["long"] == recogniser.normalise(recognised.text)
            assert len(found.candidates["long"][0].parts) == 14
            assert found.no_speech["long"] == pytest.approx(recognised.no_speech, abs=1e-4)
            times = next(line for line in found.lines if line["id"] == "long")["words"]
            assert times == [
                [each.text, pytest.approx(each.start, abs=2e-3), pytest.approx(each.end, abs=2e-3)]
                for each in recognised.words
            ]


def test_an_utterance_without_speech_has_no_words(recogniser: Recogniser, tmp_path: Path) -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(48000)
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype="FLOAT")
    cut = make_cut("a", open_recording("a", tmp_path / "a.wav"), "abc", "s")
    found = recognise(recogniser, CutSet.from_cuts([cut]))
    assert (found.hypotheses, found.ctc, found.no_speech, found.rejected) == (
        {"a": ""},
        {"a": ""},
        {"a": 1.0},
        [],
    )


def test_batches_hold_the_seconds_that_they_may(cuts: CutSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_SECONDS", 6.0)
    groups = list(module._groups(cuts, 0.0))
    assert sorted(cut.id for group in groups for cut in group) == sorted(cuts.ids)
    assert all(len(group) * max(cut.duration for cut in group) <= 6.0 for group in groups)
    assert len(groups) < 12


def test_what_cannot_be_used_is_listed_and_has_no_hypothesis(
    recogniser: Recogniser, tmp_path: Path, say: Say
) -> None:
    waves = {
        "good": say("abc de"), "silent": np.zeros(16000), "short": say("a")[2000:2500],
        "tiny": say("a")[1000:1100], "nan": np.full(16000, np.nan),
    }  # fmt: skip
    made = []
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="FLOAT")
        made.append(make_cut(name, open_recording(name, tmp_path / f"{name}.wav"), "abc de", "s"))
    found = recognise(recogniser, CutSet.from_cuts(made))
    assert found.hypotheses.keys() == {"good"}
    assert found.references.keys() == waves.keys()
    reasons = {each.id: each.reason for each in found.rejected}
    assert reasons.keys() == waves.keys() - {"good"}
    for name, word in (("silent", "silence"), ("short", "too short"), ("tiny", "too short"), ("nan", "NaN")):
        assert word in reasons[name]


def test_a_beam_search_returns_its_best_hypotheses(
    recogniser: Recogniser, cuts: CutSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = {line["id"]: line for line in recognise(recogniser, cuts).lines}
    together = recognise(recogniser, cuts, options=DecodingOptions(beam=4, nbest=3))
    for line in together.lines:
        readings = line["nbest"]
        assert isinstance(readings, list)
        assert 1 <= len(readings) <= 3
        assert readings[0] == {"text": line["hypothesis"], "score": line["score"]}
        scores = [each["score"] for each in readings]
        assert scores == sorted(scores, reverse=True)
        assert line.keys() - greedy[line["id"]].keys() == {"nbest"}
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.1)
    alone = recognise(recogniser, cuts, options=DecodingOptions(beam=4))
    assert together.hypotheses == alone.hypotheses
    assert all("nbest" not in line for line in alone.lines)


def test_hypotheses_are_written_in_order(recogniser: Recogniser, cuts: CutSet, tmp_path: Path) -> None:
    found = recognise(recogniser, cuts)
    write_hypotheses(tmp_path / "hyp.jsonl", found)
    lines = [json.loads(line) for line in (tmp_path / "hyp.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(cuts.ids)
    durations = {cut.id: cut.duration for cut in cuts}
    for line in lines:
        assert line.keys() == {"id", "speaker", "reference", "hypothesis", "score", "no_speech", "words", "confidences"}
        assert line["hypothesis"] == found.hypotheses[line["id"]]
        assert line["score"] <= 0.0
        times = [time for _, start, end in line["words"] for time in (start, end)]
        assert times == sorted(times)
        assert all(0.0 <= time <= durations[line["id"]] + 1e-3 for time in times)
