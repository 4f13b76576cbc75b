from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse.cut import Cut

from retort.common.errors import BadUtterance
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import Recogniser, load
from retort.report.experiment import open_experiment
from retort.report.firing import END, compute_firing, length_errors


@pytest.fixture
def recogniser(experiments: Path) -> Recogniser:
    return load(experiments / "taught")


@pytest.fixture
def cuts(corpus: Path) -> list[Cut]:
    return list(open_cuts(corpus / "test").cuts)


def test_fires_are_what_the_weights_add_up_to(recogniser: Recogniser, cuts: list[Cut]) -> None:
    for cut in cuts:
        found = compute_firing(recogniser, cut)
        frames = len(found.alphas)
        assert found.features.shape == (round(cut.duration * 100), 40)
        assert abs(frames * found.frame_seconds - cut.duration) < 2 * found.frame_seconds
        summed = np.interp(found.fire_times, np.arange(frames + 1), np.append(0, np.cumsum(found.alphas)))
        whole = int(found.alphas.sum() + 1e-4)
        assert len(found.fire_times) in (whole, whole + 1)
        assert summed[:whole] == pytest.approx(np.arange(1, whole + 1), abs=1e-3)


def test_labels_are_the_hypothesis(recogniser: Recogniser, cuts: list[Cut], experiments: Path) -> None:
    (scored,) = open_experiment(experiments / "taught").scored.values()
    for cut in cuts:
        found = compute_firing(recogniser, cut)
        assert len(found.labels) == len(found.fire_times)
        text = "".join(found.labels).split(END)[0].replace("␣", " ")
        assert " ".join(text.split()) == scored.texts[cut.id].hypothesis


def test_length_errors(recogniser: Recogniser, cuts: list[Cut]) -> None:
    seen: list[tuple[int, int]] = []
    found = length_errors(recogniser, cuts, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    for cut in cuts:
        text = recogniser.normalise(cut.supervisions[0].text)
        assert found[cut.id] == len(compute_firing(recogniser, cut).fire_times) - len(text) - 1


def test_audio_that_cannot_be_used(recogniser: Recogniser, cuts: list[Cut], tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(cuts[0].recording.num_samples), 16000)
    cuts[0].recording.sources[0].source = str(silent)
    with pytest.raises(BadUtterance, match="nothing but silence"):
        compute_firing(recogniser, cuts[0])
    assert length_errors(recogniser, cuts).keys() == {cut.id for cut in cuts[1:]}
