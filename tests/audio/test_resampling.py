from __future__ import annotations

import numpy as np
import pytest

from retort.audio.resampling import Resampler, resample


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (8000, 16000),
        (44100, 16000),
        (48000, 16000),
        (22050, 16000),
        (16000, 8000),
        (44101, 16000),
        (16000, 16000),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 100, 30001])
@pytest.mark.parametrize("sizes", [(40000,), (313, 5, 1000)])
def test_blocks_give_exactly_the_samples_of_the_whole(
    rate: int, wanted: int, length: int, sizes: tuple[int, ...]
) -> None:
    wave = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    resampler = Resampler(rate, wanted)
    made, start, turn = [], 0, 0
    while start < length:
        made.append(resampler(wave[start : start + sizes[turn % len(sizes)]]))
        start, turn = start + sizes[turn % len(sizes)], turn + 1
    made.append(resampler.finish())
    np.testing.assert_array_equal(np.concatenate(made), resample(wave, rate, wanted))


def test_nothing_gives_nothing() -> None:
    assert not len(Resampler(44100, 16000).finish())
