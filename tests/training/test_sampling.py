from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from lhotse.dataset.sampling import DynamicBucketingSampler

from retort.config.schema import BatchConfig, Recipe
from retort.training.sampling import BucketSampler


@dataclass
class Timed:
    id: int
    duration: float
    custom: object = None  # lhotse's own sampler writes to it


def some(count: int) -> list[Timed]:
    draw = random.Random(count)
    return [Timed(number, draw.uniform(1, 15)) for number in range(count)]


def recipe(seconds: float = 60.0, seed: int = 1) -> Recipe:
    return Recipe(name="x", seed=seed, batches=BatchConfig(seconds=seconds))


def ids(sampler: BucketSampler, epoch: int = 0) -> list[list[int]]:
    found = []
    for segment in range(sampler.segments):
        sampler.set_epoch(epoch, segment)
        found += [[cut.id for cut in batch] for batch in sampler]
    return found


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("count", [100, 1500])
def test_the_batches_of_one_segment_are_those_of_lhotse(count: int, world: int) -> None:
    cuts = some(count)
    for rank in range(world):
        reference = DynamicBucketingSampler(
            cuts, max_duration=60.0, num_buckets=10, shuffle=True, seed=1, rank=rank, world_size=world
        )
        reference.set_epoch(2)
        expected = [[cut.id for cut in batch] for batch in reference]
        assert ids(BucketSampler(cuts, recipe(), rank, world), 2) == expected


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 3, 13, 5300])
def test_the_ranks_draw_every_cut_once(count: int, world: int) -> None:
    cuts = some(count)
    ranks = [ids(BucketSampler(cuts, recipe(), rank, world, segment=2000)) for rank in range(world)]
    assert len({len(each) for each in ranks}) == 1  # no rank waits for another
    drawn = Counter(name for each in ranks for batch in each for name in batch)
    assert drawn == Counter(range(count))


def test_batches_keep_to_the_seconds_in_every_segment() -> None:
    cuts = some(5300)
    for batch in ids(BucketSampler(cuts, recipe(), segment=2000)):
        shortest = min(cuts[name].duration for name in batch)
        assert len(batch) * shortest <= 60


def test_a_segment_does_not_depend_on_the_ones_before_it() -> None:
    cuts = some(5300)
    sampler = BucketSampler(cuts, recipe(), segment=2000)
    whole = ids(sampler)
    fresh = BucketSampler(cuts, recipe(), segment=2000)
    fresh.set_epoch(0, 2)
    last = [[cut.id for cut in batch] for batch in fresh]
    assert last == whole[-len(last) :]


def test_segments_have_other_cuts_in_every_epoch_and_for_every_seed() -> None:
    cuts = some(5300)

    def first(epoch: int, seed: int = 1) -> set[int]:
        sampler = BucketSampler(cuts, recipe(seed=seed), segment=2000)
        sampler.set_epoch(epoch, 0)
        return {cut.id for batch in sampler for cut in batch}

    assert first(0) == first(0)
    assert len({frozenset(first(0)), frozenset(first(1)), frozenset(first(0, seed=2))}) > 1
