from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from retort.audio.noise import KINDS, noise_clips
from retort.common.errors import UserError
from retort.corpora.open_cuts import open_cuts
from retort.decoding.no_speech import NoSpeech, Signal
from retort.decoding.recogniser import Recogniser
from retort.evaluation import noise as module
from retort.evaluation.evaluate import evaluate
from retort.evaluation.noise import calibrate, score_noise
from retort.evaluation.recognise import recognise


@pytest.fixture
def cuts(corpus: Path) -> CutSet:
    return open_cuts(corpus / "train").cuts


def test_noise_repeats_and_has_all_kinds() -> None:
    first, again = (list(noise_clips(len(KINDS), 8000, 3)) for _ in range(2))
    assert [clip.kind for clip in first] == list(KINDS)
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.samples.dtype == np.float32
        assert 0 < np.abs(one.samples).max() <= 1.0
    assert len(first[0].samples) != len(next(noise_clips(1, 8000, 4)).samples)


def test_a_threshold_is_chosen_between_speech_and_noise(
    recogniser: Recogniser, cuts: CutSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALIBRATION_CLIPS", 18)
    stages: set[str] = set()
    found = calibrate(recogniser, cuts, lambda stage, *_: stages.add(stage))
    assert stages == {"speech", "noise"}
    assert found.false_alarms <= module.FALSE_ALARMS
    assert 0.0 < found.no_speech.threshold < 1.0
    assert NoSpeech.from_dict(json.loads(json.dumps(found.no_speech.to_dict()))) == found.no_speech
    with pytest.raises(UserError, match="too few"):
        calibrate(recogniser, CutSet.from_cuts(list(cuts)[:3]), lambda *_: None)


def test_missed_noise_and_false_alarms_are_counted(recogniser: Recogniser, cuts: CutSet) -> None:
    count = len(KINDS)
    few = CutSet.from_cuts(list(cuts)[:4])
    score = score_noise(recogniser, recognise(recogniser, few), module.GREEDY, lambda *_: None, count)
    assert (score.clips, score.utterances, score.false_alarms) == (count, 4, 0)
    assert score.missed == sum(score.kinds.values()) > 0
    recogniser.no_speech = NoSpeech({"confidence": Signal(0.0, 1.0, 0.0)}, 3.0, 0.5)
    score = score_noise(recogniser, recognise(recogniser, few), module.GREEDY, lambda *_: None, count)
    assert (score.missed, score.false_alarms) == (0, 4)
    assert ["0.00%" in score.lines()[0], "100.00%" in score.lines()[1]] == [True, True]


def test_evaluate_writes_them_down(recogniser: Recogniser, corpus: Path, tmp_path: Path) -> None:
    found = evaluate(recogniser, str(corpus / "test"), tmp_path, lambda *_: None, noise=2)
    assert found.noise is not None
    written = json.loads((found.folder / "score.json").read_text())["noise"]
    assert written["clips"] == found.noise.clips == 2
    assert written["utterances"] == 6
