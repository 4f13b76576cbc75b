"""Batches of similar durations over a corpus of any size, in segments that can be resumed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Protocol

from lhotse import CutSet
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketer, estimate_duration_buckets

from retort.config.schema import Recipe

SEGMENT, BLOCK = 50_000, 1000
"""Cuts of a segment, and consecutive cuts that stay together when a larger corpus is divided into segments."""
BUFFER = 20_000
"""Cuts in the buffer from which lhotse draws batches at random."""
_ESTIMATE = 10_000
"""Cuts whose durations determine the limits of the buckets."""


class Timed(Protocol):
    """An utterance as the sampler uses it."""

    @property
    def duration(self) -> float:
        """Seconds."""
        ...


class TimedSequence(Protocol):
    """Utterances by their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Timed: ...


class BucketSampler:
    """The batches of an epoch, drawn by lhotse's dynamic bucketing; rank r gets every world_size-th batch.

    An epoch of more than `SEGMENT` cuts is divided into segments. Blocks of `BLOCK` consecutive cuts are assigned
    to them at random in each epoch, so that audio in shards is read in long runs. A segment depends only on seed, epoch
    and number of the segment: a run is resumed without drawing the earlier ones. Every cut occurs once in an epoch.

    lhotse closes a batch when another utterance as long as its longest would exceed `batches.seconds`, so that a
    longer last utterance may exceed it by the range of durations in a bucket.

    Args:
        cuts: the cuts, or anything with their durations.
        recipe: `seed` and `batches` are used.
        rank: index of this process.
        world_size: number of processes.
        segment: maximum number of cuts of a segment, a multiple of `BLOCK`; by default `SEGMENT`.
    """

    def __init__(
        self,
        cuts: TimedSequence,
        recipe: Recipe,
        rank: int = 0,
        world_size: int = 1,
        segment: int | None = None,
    ) -> None:
        segment = segment or SEGMENT
        self.cuts, self.seed, self.size = cuts, recipe.seed, segment
        self.rank, self.world_size = rank, world_size
        self.epoch = self.segment = 0
        self.segments = max(1, -(-len(cuts) // segment))
        self._limit = TimeConstraint(max_duration=recipe.batches.seconds)
        step = 1 if self.segments == 1 else max(1, len(cuts) // _ESTIMATE)
        buckets = min(recipe.batches.buckets, len(cuts) // 2)
        # lhotse needs at least two buckets to estimate their limits; here the second one is empty.
        self._bins = [float("inf")]
        if buckets > 1:
            some: Any = islice((cuts[number] for number in range(0, len(cuts), step)), _ESTIMATE)
            self._bins = estimate_duration_buckets(some, buckets, self._limit)

    def set_epoch(self, epoch: int, segment: int = 0) -> None:
        """Set the epoch and the segment of the next iteration."""
        self.epoch, self.segment = epoch, segment

    def __iter__(self) -> Iterator[CutSet]:
        """The batches of the segment for this rank. If there are fewer than ranks at the end, they are divided again."""
        batches = iter(self._batches())
        while found := list(islice(batches, self.world_size)):
            if len(found) < self.world_size:
                found = _divided(list(chain.from_iterable(found)), self.world_size)
            yield found[self.rank]

    def _batches(self) -> DynamicBucketer:
        one = self.segments == 1
        return DynamicBucketer(
            (self.cuts[number] for number in self._numbers()),
            duration_bins=self._bins,
            world_size=self.world_size,
            constraint=self._limit,
            buffer_size=BUFFER,
            shuffle=True,
            rng=random.Random(
                self.seed + self.epoch if one else f"{self.seed} {self.epoch} {self.segment}"
            ),
            bucket_rng=random.Random(1234),  # the same in all processes, so that they draw from the same bucket
        )

    def _numbers(self) -> Iterator[int]:
        """Numbers of the cuts of the segment."""
        count = len(self.cuts)
        if self.segments == 1:
            return iter(range(count))
        blocks = list(range(0, count, BLOCK))
        random.Random(f"{self.seed} {self.epoch} blocks").shuffle(blocks)
        own = self.size // BLOCK
        chosen = blocks[self.segment * own : (self.segment + 1) * own]
        return chain.from_iterable(range(start, min(start + BLOCK, count)) for start in chosen)


def _divided(cuts: list[Any], parts: int) -> list[CutSet]:
    """Consecutive parts whose sizes differ by one at most; some are empty if there are fewer cuts."""
    size, more = divmod(len(cuts), parts)
    ends = [(number + 1) * size + min(number + 1, more) for number in range(parts)]
    return [CutSet(cuts[start:end]) for start, end in zip([0, *ends[:-1]], ends)]
