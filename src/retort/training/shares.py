"""Batches with a fixed share of each entry of `data.train`.

Fine-tuning only on new data causes catastrophic forgetting; a fixed share of old data in each batch prevents it.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lhotse import CutSet
from lhotse.cut import Cut

from retort.common.errors import UserError
from retort.config.schema import Recipe

FULLEST = 1.5
"""Maximum audio of a batch, padding included, as a multiple of `batches.seconds`."""


@dataclass(frozen=True)
class Group:
    """Training cuts that have one share of each batch.

    Attributes:
        share: share of the audio in a batch.
        cuts: cuts in the order of the data, at all speeds.
    """

    share: float
    cuts: Sequence[Cut]

    @property
    def seconds(self) -> float:
        """Duration of all cuts."""
        return float(sum(cut.duration for cut in self.cuts))


def make_groups(recipe: Recipe, cuts: CutSet, entries: Mapping[str, int]) -> list[Group]:
    """Group the training cuts by share; empty if no entry of `data.train` has one.

    Args:
        cuts: cuts of all entries, and synthetic speech.
        entries: maps ids of cuts to the number of their entry; cuts without one have no share of their own.

    Raises:
        UserError: an entry has no usable cut, or less audio than its share of one batch.
    """
    shares = {number: share for number, share in enumerate(recipe.data.train_shares) if share is not None}
    if not shares:
        return []
    members: dict[int, list[Cut]] = {number: [] for number in shares}
    others: list[Cut] = []
    for cut in cuts:
        members.get(entries.get(cut.id, -1), others).append(cut)
    left = 1.0 - sum(shares.values())
    whole = 1.0 if others else 1.0 - left  # entries without a share may have no usable cut
    groups = [Group(float(share) / whole, members[number]) for number, share in shares.items()]
    names = [recipe.data.train_sources[number] for number in shares]
    if others:
        groups.append(Group(left, others))
        names.append("entries of data.train without a share")
    for name, group in zip(names, groups):
        wanted = group.share * recipe.batches.seconds
        if group.seconds < wanted:
            raise UserError(
                f"it has {group.seconds:.1f} s of usable audio, but its share of one batch is {wanted:.1f} s",
                where=name,
                remedy="Use a smaller share, more data, or a smaller batches.seconds",
            )
    return groups


class ShareSampler:
    """The batches of an epoch; each has its share of every group, and cuts of similar durations as far as possible.

    Random draws depend only on seed and epoch. An epoch ends when the first group is used up. From
    a larger group it takes the next part of a shuffled cycle of its cuts, so that all are used equally often
    over the epochs and at most once in each. Batches are composed at random in each epoch.

    Shares are met in each batch up to whole utterances, and over the batches of an epoch up to one utterance.
    Batches have `batches.seconds` of audio on average, padding included, and at most 1.5 times that.

    Args:
        groups: groups with shares that sum to 1.
        recipe: `seed` and `batches` are used.
        rank: index of this process.
        world_size: number of processes.
    """

    def __init__(self, groups: Sequence[Group], recipe: Recipe, rank: int = 0, world_size: int = 1) -> None:
        self.groups, self.seed = list(groups), recipe.seed
        self.limit, self.buckets = recipe.batches.seconds, max(1, recipe.batches.buckets)
        self.rank, self.world_size = rank, world_size
        self.epoch, self.segments = 0, 1
        self.epoch_seconds = min(group.seconds / group.share for group in self.groups)

    def set_epoch(self, epoch: int, segment: int = 0) -> None:
        """Set the epoch of the next iteration; an epoch has one segment."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[CutSet]:
        draw = random.Random(f"{self.seed} {self.epoch} batches")
        ordered = [self._ordered(self._stretch(number), draw) for number in range(len(self.groups))]
        batches = [batch for batch in self._divided(ordered) if batch]
        draw.shuffle(batches)
        whole = max(len(batches) // self.world_size, 1) * self.world_size
        for index in range(self.rank, min(whole, len(batches)), self.world_size):
            yield CutSet.from_cuts(batches[index])

    def _stretch(self, number: int) -> list[Cut]:
        """The cuts of a group in this epoch."""
        group = self.groups[number]
        total, size = group.seconds, group.share * self.epoch_seconds
        first, last = self.epoch * size, (self.epoch + 1) * size
        cuts = list(group.cuts)
        random.Random(f"{self.seed} {number}").shuffle(cuts)
        ends = list(accumulate(cut.duration for cut in cuts))
        found: dict[str, Cut] = {}
        for turn in range(int(first // total), int(last // total) + 1):
            starts = [turn * total + each for each in (0.0, *ends[:-1])]
            for cut in cuts[bisect_left(starts, first) : bisect_left(starts, last)]:
                found[cut.id] = cut
        return list(found.values())

    def _ordered(self, cuts: list[Cut], draw: random.Random) -> list[Cut]:
        """Sort by duration, and shuffle within the recipe's number of buckets."""
        cuts = sorted(cuts, key=lambda cut: (cut.duration, cut.id))
        size = max(1, -(-len(cuts) // self.buckets))
        buckets = [cuts[start : start + size] for start in range(0, len(cuts), size)]
        for bucket in buckets:
            draw.shuffle(bucket)
        return [cut for bucket in buckets for cut in bucket]

    def _divided(self, ordered: list[list[Cut]]) -> list[list[Cut]]:
        """Divide into the smallest number of batches within the limit."""
        audio = sum(cut.duration for cuts in ordered for cut in cuts)
        rounds, most = max(1, round(audio / self.limit / self.world_size)), max(map(len, ordered))
        while True:
            count = rounds * self.world_size
            pieces = [_pieces(cuts, count) for cuts in ordered]
            batches = [[cut for piece in parts for cut in piece] for parts in zip(*pieces)]
            sizes = [_padded_seconds(batch) for batch in batches]
            single = [size for size, batch in zip(sizes, batches) if len(batch) > 1]
            fits = sum(sizes) <= self.limit * count and max(single, default=0.0) <= FULLEST * self.limit
            if fits or count >= most:
                return batches
            rounds += max(1, rounds // 10)


def _pieces(cuts: Sequence[Cut], count: int) -> list[list[Cut]]:
    """Consecutive pieces of equal duration; a cut belongs to the piece of its middle."""
    pieces: list[list[Cut]] = [[] for _ in range(count)]
    total, before = sum(cut.duration for cut in cuts), 0.0
    for cut in cuts:
        pieces[min(int((before + cut.duration / 2) / total * count), count - 1)].append(cut)
        before += cut.duration
    return pieces


def _padded_seconds(cuts: Sequence[Cut]) -> float:
    return len(cuts) * max((cut.duration for cut in cuts), default=0.0)
