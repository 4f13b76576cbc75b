from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.audio.specaugment import spec_augment
from retort.config.schema import AugmentConfig


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(frames: int, bins: int, seed: int = 0) -> Tensor:
    """Zeros and tens: none of them is the mean, so that every masked value shows."""
    return 10.0 * torch.randint(0, 2, (frames, bins), generator=generator(seed))


def runs(hidden: Tensor) -> list[int]:
    """Lengths of the stretches of true in a vector."""
    lengths, current = [], 0
    for each in [*hidden.tolist(), False]:
        if each:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


def hidden_bands(features: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Which bins and which frames are the mean all through."""
    changed = masked != features
    return changed.all(0), changed.all(1)


def test_the_generator_alone_decides() -> None:
    features, config = noise(120, 40), AugmentConfig()
    first = spec_augment(features, config, generator(1))
    torch.manual_seed(99)  # the global state has no say
    assert torch.equal(spec_augment(features, config, generator(1)), first)
    others = [spec_augment(features, config, generator(seed)) for seed in range(2, 8)]
    assert not all(torch.equal(each, first) for each in others)


def test_the_input_is_untouched_and_the_global_state_too() -> None:
    features = noise(120, 40)
    before, state = features.clone(), torch.get_rng_state()
    masked = spec_augment(features, AugmentConfig(), generator(3))
    assert torch.equal(features, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(masked, before)


@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 90),
    frequency_width=st.integers(0, 50),
    time_width=st.integers(0, 120),
    share=st.floats(0.0, 1.0),
)
@settings(max_examples=80, deadline=None)
def test_one_mask_of_each_kind_is_within_its_limits(
    seed: int, frames: int, frequency_width: int, time_width: int, share: float
) -> None:
    features = noise(frames, 30, seed)
    for bands, stretches in ((1, 0), (0, 1)):
        config = AugmentConfig(
            frequency_masks=bands,
            frequency_width=frequency_width,
            time_masks=stretches,
            time_width=time_width,
            time_share=share,
        )
        masked = spec_augment(features, config, generator(seed))
        changed = masked != features
        assert torch.equal(masked[changed], features.mean().expand(int(changed.sum())))
        hidden = changed.all(0) if bands else changed.all(1)
        expected = hidden[None, :] if bands else hidden[:, None]
        assert torch.equal(changed, expected.expand_as(changed))
        limit = frequency_width if bands else min(time_width, int(share * frames))
        assert len(runs(hidden)) <= 1
        assert int(hidden.sum()) <= max(limit - 1, 0)


def test_widths_and_places_reach_their_ends() -> None:
    features = noise(60, 30)
    config = AugmentConfig(frequency_masks=1, frequency_width=5, time_masks=1, time_width=4)
    widths: set[tuple[str, int]] = set()
    bins, frames = torch.zeros(30, dtype=torch.bool), torch.zeros(60, dtype=torch.bool)
    for seed in range(600):
        band, stretch = hidden_bands(features, spec_augment(features, config, generator(seed)))
        widths |= {("band", int(band.sum())), ("stretch", int(stretch.sum()))}
        bins |= band
        frames |= stretch
    assert widths == {("band", n) for n in range(5)} | {("stretch", n) for n in range(4)}
    assert bins.all()
    assert frames.all()


@pytest.mark.parametrize("masks", [0, 1, 3])
def test_there_are_no_more_masks_than_asked_for(masks: int) -> None:
    features = noise(400, 80)
    config = AugmentConfig(frequency_masks=masks, frequency_width=6, time_masks=masks, time_width=9)
    most = 0
    for seed in range(40):
        band, stretch = hidden_bands(features, spec_augment(features, config, generator(seed)))
        most = max(most, len(runs(band)), len(runs(stretch)))
        assert len(runs(band)) <= masks
        assert len(runs(stretch)) <= masks
    assert most == masks
