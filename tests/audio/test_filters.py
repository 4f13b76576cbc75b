"""Filters against SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import minimum_filter1d, uniform_filter1d
from scipy.signal import firwin, resample_poly

from retort.audio.filters import low_pass, moving_mean, moving_minimum
from retort.audio.resampling import resample


@pytest.mark.parametrize("count", [1, 2, 7, 500, 1203])
@pytest.mark.parametrize("size", [1, 3, 11])
def test_moving_means(count: int, size: int) -> None:
    values = np.random.default_rng(count).standard_normal((count, 3)) ** 2
    expected = uniform_filter1d(values, size, axis=0, mode="nearest")
    np.testing.assert_allclose(moving_mean(values, size), expected, atol=1e-12)
    assert not len(moving_mean(values[:0], size))


@pytest.mark.parametrize("count", [1, 2, 100, 101, 1203])
@pytest.mark.parametrize("size", [1, 3, 101])
def test_moving_minima(count: int, size: int) -> None:
    values = np.random.default_rng(count).standard_normal((count, 3))
    expected = minimum_filter1d(values, size, axis=0, origin=size // 2, mode="nearest")
    np.testing.assert_array_equal(moving_minimum(values, size), expected)


def test_a_low_pass_filter() -> None:
    np.testing.assert_allclose(low_pass(30, 1 / 3), firwin(61, 1 / 3, window=("kaiser", 5.0)), atol=1e-12)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 8000), (44101, 16000)])
@pytest.mark.parametrize("length", [1, 2, 100, 30001])
def test_resampling(rate: int, wanted: int, length: int) -> None:
    wave = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    divisor = math.gcd(rate, wanted)
    expected = resample_poly(wave, wanted // divisor, rate // divisor)
    np.testing.assert_allclose(resample(wave, rate, wanted), expected, atol=5e-6)
