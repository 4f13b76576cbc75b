"""Batches in which each entry of `data.train` has its share.

Fine-tuning on new data alone makes a model forget the old; a fixed share of old data in each batch keeps it.
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
"""Most audio of a batch, padding counted, as a multiple of `batches.seconds`."""


@dataclass(frozen=True)
class Group:
    """Training cuts that have one share of each batch.

    Attributes:
        share: of the audio in a batch.
        cuts: in the order of the data, at all speeds.
    """

    share: float
    cuts: Sequence[Cut]

    @property
    def seconds(self) -> float:
        """Audio of all cuts."""
        return float(sum(cut.duration for cut in self.cuts))


def make_groups(recipe: Recipe, cuts: CutSet, entries: Mapping[str, int]) -> list[Group]:
    """The training cuts by their share; none where no entry of `data.train` has one.

    Args:
        cuts: of all entries, and synthetic speech.
        entries: by the id of a cut the number of its entry; cuts without one have no share of their own.

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
    whole = 1.0 if others else 1.0 - left  # of entries without a share nothing may be usable
    groups = [Group(float(share) / whole, members[number]) for number, share in shares.items()]
    names = [recipe.data.train_sources[number] for number in shares]
    if others:
        groups.append(Group(left, others))
        names.append("entries of data.train without a share")
    for name, group in zip(names, groups):
        wanted = group.share * recipe.batches.seconds
        if group.seconds < wanted:
            raise UserError(
                f"it has {group.seconds:.1f} s of usable audio, its share of one batch is {wanted:.1f} s",
                where=name,
                remedy="Give it a smaller share, more data, or set a smaller batches.seconds",
            )
    return groups


class ShareSampler:
    """The batches of an epoch; each has its share of every group, and cuts of like durations as far as that allows.

    All that is drawn depends on the seed and the epoch alone. An epoch is as long as the group that is used up first. Of
    a larger group it takes the next stretch of a shuffled cycle of its cuts, so that each of them comes equally often
    over the epochs and at most once in each; which cuts share a batch is drawn in each epoch.

    Shares hold in each batch as far as whole utterances can, and over the batches of an epoch up to an utterance.
    Batches have `batches.seconds` of audio on average, padding counted, and at most 1.5 times that.

    Args:
        groups: whose shares sum to 1.
        recipe: its seed and `batches`.
        rank: which batches of each round this process takes.
        world_size: processes.
    """

    def __init__(self, groups: Sequence[Group], recipe: Recipe, rank: int = 0, world_size: int = 1) -> None:
        self.groups, self.seed = list(groups), recipe.seed
        self.limit, self.buckets = recipe.batches.seconds, max(1, recipe.batches.buckets)
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.epoch_seconds = min(group.seconds / group.share for group in self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration gives."""
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
        """The cuts of a group in this epoch, each once."""
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
        """By duration, but shuffled within as many buckets as the recipe has."""
        cuts = sorted(cuts, key=lambda cut: (cut.duration, cut.id))
        size = max(1, -(-len(cuts) // self.buckets))
        buckets = [cuts[start : start + size] for start in range(0, len(cuts), size)]
        for bucket in buckets:
            draw.shuffle(bucket)
        return [cut for bucket in buckets for cut in bucket]

    def _divided(self, ordered: list[list[Cut]]) -> list[list[Cut]]:
        """As few batches as hold what a batch may hold."""
        audio = sum(cut.duration for cuts in ordered for cut in cuts)
        rounds, most = max(1, round(audio / self.limit / self.world_size)), max(map(len, ordered))
        while True:
            count = rounds * self.world_size
            pieces = [_pieces(cuts, count) for cuts in ordered]
            batches = [[cut for piece in parts for cut in piece] for parts in zip(*pieces)]
            sizes = [_padded_seconds(batch) for batch in batches]
            alone = [size for size, batch in zip(sizes, batches) if len(batch) > 1]
            fits = sum(sizes) <= self.limit * count and max(alone, default=0.0) <= FULLEST * self.limit
            if fits or count >= most:
                return batches
            rounds += max(1, rounds // 10)


def _pieces(cuts: Sequence[Cut], count: int) -> list[list[Cut]]:
    """Consecutive pieces of like audio; a cut belongs where its middle is."""
    pieces: list[list[Cut]] = [[] for _ in range(count)]
    total, before = sum(cut.duration for cut in cuts), 0.0
    for cut in cuts:
        pieces[min(int((before + cut.duration / 2) / total * count), count - 1)].append(cut)
        before += cut.duration
    return pieces


def _padded_seconds(cuts: Sequence[Cut]) -> float:
    return len(cuts) * max((cut.duration for cut in cuts), default=0.0)
