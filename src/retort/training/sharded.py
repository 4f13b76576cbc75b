"""Training cuts in shards: light entries for the sampler, which are opened when their batch is loaded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from lhotse import MonoCut
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples, perturb_num_samples

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.corpora.cuts import Rejected
from retort.corpora.shards import Shards, name_hash


@dataclass(frozen=True, slots=True)
class ShardCut:
    """A cut of :class:`ShardedCuts` for the sampler.

    Attributes:
        number: index among the training cuts.
        duration: seconds, at its speed.
    """

    number: int
    duration: float


class ShardRows:
    """The cuts of a folder of shards within the recipe's limits of durations: 12 bytes of memory each."""

    def __init__(self, shards: Shards, recipe: Recipe) -> None:
        self.shards = shards
        low, high = recipe.batches.minimum_seconds, recipe.batches.maximum_seconds
        durations = shards.rows()["duration"].astype(np.float64)
        self.numbers = np.flatnonzero((low <= durations) & (durations <= high)).astype(np.int32)
        self.durations = durations[self.numbers]
        self.left_out = len(durations) - len(self.numbers)
        rates = np.unique(shards.rows()["rate"])
        self.rates = rates if len(rates) == 1 else shards.rows()["rate"][self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def transcripts(self) -> Iterator[str]:
        """The texts of the cuts."""
        return self.shards.transcripts(self.numbers)

    def duration(self, place: int, speed: float) -> float:
        """Seconds at a speed, as lhotse rounds them."""
        seconds = float(self.durations[place])
        if speed == 1.0:
            return seconds
        rate = int(self.rates[place if len(self.rates) > 1 else 0])
        return perturb_num_samples(compute_num_samples(seconds, rate), speed) / rate


def open_shards(source: str, recipe: Recipe) -> ShardRows:
    """Open an entry of `data.train` that is a folder of shards.

    Raises:
        UserError: as :class:`retort.corpora.shards.Shards`.
    """
    return ShardRows(Shards(source, round(recipe.data.shard_cache * 1e9)), recipe)


_Part = tuple[ShardRows | Sequence[Cut], float]


class ShardedCuts:
    """Training cuts of which all or some are in shards, in the order of the recipe's sources, at all speeds.

    The order is that of the same cuts in manifests, so that a training has the same batches.

    Args:
        sources: folders of shards, and cuts in files within the recipe's durations; their ids are distinct.
        recipe: `augment.speeds` and the limits of `batches` are used.
        more: cuts in files that are added as they are.

    Attributes:
        rejected: what cannot be used: the number of cuts for each folder.

    Raises:
        UserError: no cut is usable, or an id occurs in two sources.
    """

    def __init__(
        self, sources: Sequence[ShardRows | Sequence[Cut]], recipe: Recipe, more: Sequence[Cut] = ()
    ) -> None:
        _check_distinct(sources)
        self.rejected = [
            Rejected(
                rows.shards.source,
                f"the durations of {rows.left_out:,} cuts are not between batches.minimum_seconds and maximum_seconds",
            )
            for rows in sources
            if isinstance(rows, ShardRows) and rows.left_out
        ]
        self._parts: list[_Part] = [
            (rows if isinstance(rows, ShardRows) or speed == 1.0 else [cut.perturb_speed(speed) for cut in rows], speed)
            for speed in recipe.augment.speeds
            for rows in sources
        ]
        self._parts += [(more, 1.0)] if more else []
        self._plain, self._more = sources, more
        self._ends = list(accumulate(len(rows) for rows, _ in self._parts))
        if not len(self):
            raise UserError(
                "no training utterance is within batches.minimum_seconds and maximum_seconds", where=recipe.name
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Cut | ShardCut:
        """A cut in files, or the entry of one in a shard."""
        rows, speed, place = self._find(number)
        if isinstance(rows, ShardRows):
            return ShardCut(number, rows.duration(place, speed))
        return rows[place]

    def open(self, number: int) -> Cut:
        """A cut with its audio.

        Raises:
            BadUtterance: its line or its audio is damaged.
            UserError: its shard is damaged or cannot be read.
        """
        rows, speed, place = self._find(number)
        if not isinstance(rows, ShardRows):
            return rows[place]
        cut: MonoCut = rows.shards.open(int(rows.numbers[place]))
        return cut if speed == 1.0 else cut.perturb_speed(speed)

    def transcripts(self) -> Iterator[str]:
        """The texts of all cuts; once for all speeds."""
        for rows in (*self._plain, self._more):
            if isinstance(rows, ShardRows):
                yield from rows.transcripts()
            else:
                yield from (cut.supervisions[0].text or "" for cut in rows)

    def _find(self, number: int) -> tuple[ShardRows | Sequence[Cut], float, int]:
        """Part, speed, and place in the part."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        index = bisect_right(self._ends, number)
        rows, speed = self._parts[index]
        return rows, speed, number - (self._ends[index - 1] if index else 0)


def _check_distinct(sources: Sequence[ShardRows | Sequence[Cut]]) -> None:
    names = []
    for source in sources:
        if isinstance(source, ShardRows):
            names.append(source.shards.rows()["name"].astype(np.uint64))
        else:
            names.append(np.array([name_hash(cut.id) for cut in source], np.uint64))
    total = sum(map(len, names))
    if len(sources) > 1 and (more := total - len(np.unique(np.concatenate(names)))):
        where = ", ".join(each.shards.source for each in sources if isinstance(each, ShardRows))
        raise UserError(
            f"{more:,} ids of cuts occur in two entries of data.train", where=where, remedy="Remove one of them"
        )


def check_supported(recipe: Recipe) -> None:
    """Refuse settings that need the training cuts in files.

    Raises:
        UserError: with the setting.
    """
    audio = [name for name, each in recipe.teachers.items() if each.reads_audio]
    used = {row.teacher for row in recipe.distill}
    reasons = {
        "a share of data.train": any(share is not None for share in recipe.data.train_shares),
        "data.spoken.transcripts": bool(recipe.data.spoken.voices and recipe.data.spoken.transcripts),
        "training.stored_layers": bool(recipe.training.stored_layers),
        "a hybrid student": recipe.student.kind == "hybrid",
        "a teacher that reads audio": bool(used.intersection(audio)),
    }
    for name, used_here in reasons.items():
        if used_here:
            raise UserError(
                f"{name} needs data in files, but an entry of data.train is a folder of shards",
                where=recipe.name,
                remedy="Use the manifests of the corpus in place of its shards",
            )
