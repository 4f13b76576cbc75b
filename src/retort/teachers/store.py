"""What a teacher said, on disk: another teacher, whose readings were made once and are shared by all runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.teachers.fingerprint import identity_key
from retort.teachers.shards import SUFFIX, BrokenShard, Shard, open_shard
from retort.teachers.teacher import Reading

MANIFEST = "store.json"


class Place(NamedTuple):
    """Where a text is: its shard, its row there, and the range of its vectors."""

    shard: Shard
    row: int
    range: slice


class StoredReading(Reading):
    """A reading as it lies in a shard, which was checked whole: nothing of it is copied.

    Its spans are made of the mapped ones when they are first asked for.
    """

    def __init__(self, text: str, place: Place) -> None:
        own = self.__dict__  # the quickest way past what keeps a reading from being changed
        own["text"], own["_place"] = text, place
        # NumPy's slices, because a tensor's take three times as long.
        own["vectors"] = torch.from_numpy(place.shard.vectors[place.range])
        ids = place.shard.ids
        own["ids"] = None if ids is None else torch.from_numpy(ids[place.range])

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        place: Place = self.__dict__["_place"]
        return place.shard.spans_of(place.row)


class StoredTeacher:
    """Reads texts from shards of one teacher; float16 on disk, mapped, so that processes share the memory.

    The folder is named by the teacher's identity (fingerprints of weights and tokenizer, layers, case, longest
    input; of soft labels the student's tokenizer and k), which also stands in `store.json` and, as a key, in every
    shard: what another teacher said is never taken for this one's. Shards that other processes add are seen after
    :meth:`refresh`.

    Args:
        root: of the stores, for example `exp/cache/teachers`; the store is `root/KEY`, made if missing.
        identity: of the teacher, as :meth:`MaskedLMTeacher.identity` and
            :meth:`PosteriorTeacher.identity` give it.

    Raises:
        UserError: the folder holds what another teacher said, or cannot be read or written.
    """

    def __init__(self, root: Path, identity: Mapping[str, object]) -> None:
        self.identity = dict(identity)
        self.key = identity_key(identity)
        self.folder = root / self.key
        self.dim = int(str(identity["dim"]))
        self.broken: list[Path] = []
        """Shards that are not whole; filling the store makes them again."""
        self._shards: dict[Path, Shard] = {}
        self._places: dict[str, Place] = {}
        self._claim()
        self.refresh()

    @property
    def reads_audio(self) -> bool:
        """As :func:`retort.teachers.whisper.reads_audio`."""
        return "audio" in self.identity

    def __len__(self) -> int:
        """Distinct texts that are here."""
        return len(self._places)

    @property
    def bytes(self) -> int:
        """Of its shards on disk."""
        return sum(path.stat().st_size for path in self._shards if path.exists())

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """One reading a text, in order, float16 as it is mapped; equal texts share one.

        Raises:
            UserError: a text is not in the store.
        """
        places = self._places
        readings: dict[str, Reading] = {}
        try:
            for text in dict.fromkeys(texts):
                readings[text] = StoredReading(text, places[text])
        except KeyError as error:
            raise self._lacks(str(error.args[0])) from None
        return [readings[text] for text in texts]

    def missing(self, texts: Iterable[str]) -> list[str]:
        """The distinct ones among `texts` that are not here, in order."""
        return [text for text in dict.fromkeys(texts) if text not in self._places]

    def refresh(self) -> None:
        """See what other processes have stored since.

        Raises:
            UserError: a shard in the folder was made by another teacher.
        """
        self.broken = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path in self._shards:
                continue
            try:
                shard = open_shard(path, self.key, self.dim)
            except BrokenShard:
                self.broken.append(path)
                continue
            self._shards[path] = shard
            for row, text in enumerate(shard.texts):
                vectors = slice(shard.offsets[row], shard.offsets[row + 1])
                self._places.setdefault(text, Place(shard, row, vectors))

    def _claim(self) -> None:
        path = self.folder / MANIFEST
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = read_json(path) if path.exists() else None
        except OSError as error:
            raise UserError(f"cannot be used ({error.strerror or error})", where=self.folder) from None
        except ValueError as error:
            raise UserError(
                f"not valid JSON ({error})", where=path, remedy="Remove this file alone; the shards stay good"
            ) from None
        if there is None:
            content = {"key": self.key, **self.identity}
            write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            return
        changed = [
            f"{name}: {there.get(name) if isinstance(there, dict) else there} there, {value} here"
            for name, value in {"key": self.key, **self.identity}.items()
            if name != "model" and (not isinstance(there, dict) or there.get(name) != value)
        ]
        if changed:
            raise UserError(
                f"a store made for another teacher, layer or tokenizer ({'; '.join(changed)})",
                where=self.folder,
                remedy="Move it back to its own folder, or remove it",
            )

    def _lacks(self, text: str) -> UserError:
        broken = f" ({len(self.broken)} of its shards are cut short)" if self.broken else ""
        return UserError(
            f"the teacher's store has no '{text}'{broken}",
            where=self.folder,
            remedy="Run `retort teach` with this recipe",
        )
