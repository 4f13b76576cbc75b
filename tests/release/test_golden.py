"""Transcripts and error rates of the committed models, so that no change of the code changes a released model.

Recorded speech is read from `$RETORT_DATA`; these tests are skipped where it is missing.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from retort.decoding.recogniser import Recogniser, load

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RETORT_DATA", ROOT.parent / "shared" / "data"))

GOLDEN = {
    ("english", "speechocean762/dev"): {
        "029370193": "now you can be too",
        "000490088": "look at diddies",
        "000960002": "lisa likes the brown",
    },
    ("mandarin", "commonvoice_zh/dev"): {
        "062-cv18844462": "妻子可以指",
        "166-cv18912846": "同心时代至作品请建下旁并外列出",
        "147-cv18724639": "十六强赛是以下时间均为当地时间",
    },
    ("speechocean762_cif", "speechocean762/dev"): {
        "023270080": "SO IT WAS THE RESHAP FOR ALL",
        "012930225": "IT'S A GOOD FIR DAY TO BE A UP",
        "030270053": "MY THINK ALL GETTING OUT",
    },
    ("speechocean762_lrd", "speechocean762/dev"): {
        "023270080": "SO IT WAS THE REALLY FALL",
        "012930225": "IT'S A GOOD FOR A DAY TO BE A B",
        "030270053": "MY THINGS ALL GETTING OUT",
    },
}
RATES = {"english": 0.1633, "mandarin": 0.2286, "speechocean762_cif": 0.4125, "speechocean762_lrd": 0.4}
"""Character error rate of these utterances, a fraction."""


@cache
def model(name: str) -> Recogniser:
    return load(ROOT / "models" / name)


@pytest.mark.parametrize(("name", "source"), GOLDEN)
def test_transcripts_of_recorded_speech(name: str, source: str) -> None:
    if not (DATA / source).is_dir():
        pytest.skip(f"{source} is not in $RETORT_DATA")
    from lhotse import CutSet

    from retort.corpora.open_cuts import open_cuts
    from retort.evaluation.recognise import recognise
    from retort.evaluation.scoring import score

    expected = GOLDEN[name, source]
    cuts = CutSet.from_cuts(cut for cut in open_cuts(DATA / source).cuts if cut.id in expected)
    found = recognise(model(name), cuts, lambda *_: None)
    assert found.hypotheses == expected
    assert score(found.references, found.hypotheses).cer == pytest.approx(RATES[name], abs=1e-4)


def test_a_transcript_of_synthetic_speech() -> None:
    pytest.importorskip("espeakng_loader")
    from retort.audio.resampling import resample
    from retort.corpora.espeak import SAMPLING_RATE, speak

    speech = speak("the weather is very nice today", "en-us", rate=150)
    samples = resample(speech.samples.astype(np.float32) / 2**15, SAMPLING_RATE, 16000)
    assert model("english").transcribe_samples(samples).text == "but whenever is very nice today"


@pytest.mark.parametrize("name", ["english", "mandarin"])
def test_noise_has_no_transcript(name: str) -> None:
    noise = 1e-2 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
    assert model(name).transcribe_samples(noise).text == ""
