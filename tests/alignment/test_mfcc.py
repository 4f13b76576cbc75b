"""Cepstra: as many frames as filter banks have, differences by their formula, the missing wheel named."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from retort.alignment.mfcc import Mfcc, with_differences
from retort.audio.fbank import Fbank, FbankConfig
from retort.common.errors import UserError
from retort.corpora.open_cuts import open_cuts
from retort.training.aligning import CutMfcc


@pytest.mark.parametrize("samples", [0, 399, 400, 8000, 16079, 16080, 16081])
def test_frames_are_those_of_the_filter_banks(samples: int) -> None:
    wave = np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1
    cepstra = Mfcc()(wave)
    assert cepstra.shape == (len(Fbank(FbankConfig())(wave)), 13)
    assert cepstra.dtype == np.float32
    assert np.isfinite(cepstra).all()


def test_cepstra_tell_level_and_colour_apart() -> None:
    wave = np.random.default_rng(0).normal(size=8000).astype(np.float32) * 0.05
    plain, louder, darker = (
        Mfcc()(each)[5:-5] for each in (wave, 4 * wave, np.convolve(wave, [1, 1], "same"))
    )
    # Four times the amplitude adds to the first cepstrum alone: log 16 times the root of 23 bins.
    np.testing.assert_allclose(louder[:, 0] - plain[:, 0], np.log(16) * np.sqrt(23), rtol=1e-3)
    np.testing.assert_allclose(louder[:, 1:], plain[:, 1:], atol=0.05)
    assert np.abs(darker[:, 1] - plain[:, 1]).mean() > 3


def test_differences_are_slopes() -> None:
    values = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)

    def slope(series: np.ndarray, frame: int) -> np.ndarray:
        last = len(series) - 1
        return sum(n * (series[min(frame + n, last)] - series[max(frame - n, 0)]) for n in (1, 2)) / 10

    first = np.stack([slope(values, frame) for frame in range(7)])
    second = np.stack([slope(first, frame) for frame in range(7)])
    found = with_differences(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([values, first, second], 1), atol=1e-6)
    line = np.arange(9, dtype=np.float32)[:, None] * 3
    np.testing.assert_allclose(with_differences(line)[4], [12, 3, 0], atol=1e-6)


def test_the_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(UserError, match=r"not installed\. Run: pip install 'retort-asr\[hybrid\]'"):
        Mfcc()


def test_of_cuts_in_other_processes(tone_corpus: Path) -> None:
    cut = next(iter(open_cuts(tone_corpus).cuts))
    cepstra = pickle.loads(pickle.dumps(CutMfcc()))(cut)
    assert cepstra.shape == (round(cut.duration * 100), 13)
    np.testing.assert_array_equal(cepstra, CutMfcc()(cut))
