"""Teacher outputs stored on disk: computed once and shared by all runs."""

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
from retort.teachers.teacher import TeacherOutput

MANIFEST = "store.json"


class Place(NamedTuple):
    """Location of a text: its shard, its row there, and the range of its vectors."""

    shard: Shard
    row: int
    range: slice


class StoredOutput(TeacherOutput):
    """An output that is a view of a shard, without a copy.

    Its spans are unpacked on first access.
    """

    def __init__(self, text: str, place: Place) -> None:
        own = self.__dict__  # the quickest way past what keeps a output from being changed
        own["text"], own["_place"] = text, place
        # Slices of NumPy arrays: those of tensors take three times as long.
        own["vectors"] = torch.from_numpy(place.shard.vectors[place.range])
        ids = place.shard.ids
        own["ids"] = None if ids is None else torch.from_numpy(ids[place.range])

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        place: Place = self.__dict__["_place"]
        return place.shard.spans_of(place.row)


class StoredTeacher:
    """Returns the outputs of one teacher from its shards; float16, memory-mapped and shared between processes.

    The name of the folder is a hash of the teacher's identity (fingerprints of weights and tokenizer, layers, case,
    maximum input; for soft labels the student's tokenizer and k). The identity is also in `store.json`, and its hash
    in every shard, so that outputs of another teacher are never used. Shards that other processes add are visible
    after :meth:`refresh`.

    Args:
        root: folder of all stores, for example `exp/cache/teachers`; the store is `root/KEY`, created if missing.
        identity: of the teacher, as :meth:`MaskedLMTeacher.identity` and
            :meth:`PosteriorTeacher.identity` return it.

    Raises:
        UserError: the folder belongs to another teacher, or cannot be read or written.
    """

    def __init__(self, root: Path, identity: Mapping[str, object]) -> None:
        self.identity = dict(identity)
        self.key = identity_key(identity)
        self.folder = root / self.key
        self.dim = int(str(identity["dim"]))
        self.broken: list[Path] = []
        """Incomplete shards; filling the store computes their texts again."""
        self._shards: dict[Path, Shard] = {}
        self._places: dict[str, Place] = {}
        self._claim()
        self.refresh()

    @property
    def reads_audio(self) -> bool:
        """As :func:`retort.teachers.whisper.reads_audio`."""
        return "audio" in self.identity

    def __len__(self) -> int:
        """Number of distinct texts in the store."""
        return len(self._places)

    @property
    def bytes(self) -> int:
        """Size of its shards on disk."""
        return sum(path.stat().st_size for path in self._shards if path.exists())

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        """One output for each text, in order, float16 and memory-mapped; equal texts share one.

        Raises:
            UserError: a text is not in the store.
        """
        places = self._places
        outputs: dict[str, TeacherOutput] = {}
        try:
            for text in dict.fromkeys(texts):
                outputs[text] = StoredOutput(text, places[text])
        except KeyError as error:
            raise self._lacks(str(error.args[0])) from None
        return [outputs[text] for text in texts]

    def missing(self, texts: Iterable[str]) -> list[str]:
        """The distinct texts that are not in the store, in order."""
        return [text for text in dict.fromkeys(texts) if text not in self._places]

    def refresh(self) -> None:
        """Open the shards that other processes have written meanwhile.

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
                f"not valid JSON ({error})", where=path, remedy="Remove only this file; the shards remain valid"
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
                f"the store belongs to another teacher, layer or tokenizer ({'; '.join(changed)})",
                where=self.folder,
                remedy="Move it back to its own folder, or remove it",
            )

    def _lacks(self, text: str) -> UserError:
        broken = f" ({len(self.broken)} of its shards are incomplete)" if self.broken else ""
        return UserError(
            f"the teacher's store does not contain '{text}'{broken}",
            where=self.folder,
            remedy="Run `retort teach` with this recipe",
        )
