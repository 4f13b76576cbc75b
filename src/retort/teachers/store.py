"""What a teacher said, on disk: another teacher, whose readings were made once and are shared by all runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.errors import UserError
from retort.teachers.fingerprint import identity_key
from retort.teachers.shards import SUFFIX, BrokenShard, Shard, open_shard, write_whole
from retort.teachers.teacher import Reading

MANIFEST = "store.json"


class StoredTeacher:
    """Reads texts from shards of one teacher; float16 on disk, mapped, so that processes share the memory.

    The folder is named by the teacher's identity (fingerprints of weights and tokenizer, layers, case, longest
    input), which also stands in `store.json` and, as a key, in every shard: what another teacher said is never
    taken for this one's. Shards that other processes add are seen after :meth:`refresh`.

    Args:
        root: of the stores, for example `exp/cache/teachers`; the store is `root/KEY`, made if missing.
        identity: of the teacher, as :meth:`MaskedLMTeacher.identity` gives it.
        device: where vectors go when they are read.

    Raises:
        UserError: the folder holds what another teacher said, or cannot be read or written.
    """

    def __init__(
        self, root: Path, identity: Mapping[str, object], device: torch.device | str = "cpu"
    ) -> None:
        self.identity = dict(identity)
        self.key = identity_key(identity)
        self.folder = root / self.key
        self.device = torch.device(device)
        self.dim = int(str(identity["dim"]))
        self.broken: list[Path] = []
        """Shards that are not whole; filling the store makes them again."""
        self._shards: dict[Path, Shard] = {}
        self._places: dict[str, tuple[Shard, int, int, int]] = {}
        """Of each text the shard, its row there, and the range of its vectors."""
        self._claim()
        self.refresh()

    def __len__(self) -> int:
        """Distinct texts that are here."""
        return len(self._places)

    @property
    def bytes(self) -> int:
        """Of its shards on disk."""
        return sum(path.stat().st_size for path in self._shards if path.exists())

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """One reading a text, in order, float32 on the device; equal texts share one.

        Raises:
            UserError: a text is not in the store.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return []
        stored = self.vectors(distinct)
        # In half precision to the device in one piece; each reading is then a part of that.
        with torch.autocast(self.device.type, enabled=False):  # on a CPU it refuses to join float16 tensors
            rows = torch.cat(stored).to(self.device).float().split([len(each) for each in stored])
        readings = {}
        for text, vectors in zip(distinct, rows, strict=True):
            shard, row, _, _ = self._places[text]
            readings[text] = Reading(vectors, shard.spans_of(row), text)
        return [readings[text] for text in texts]

    def vectors(self, texts: Iterable[str]) -> list[Tensor]:
        """For each text its `(n + 2, D)` float16 as mapped from the disk: nothing is copied; never change them.

        Raises:
            UserError: a text is not in the store.
        """
        places = self._places
        try:
            # NumPy's slices, because a tensor's take three times as long.
            return [
                torch.from_numpy(shard.vectors[start:end])
                for shard, _, start, end in [places[text] for text in texts]
            ]
        except KeyError as error:
            raise self._lacks(str(error.args[0])) from None

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
                start, end = shard.offsets[row], shard.offsets[row + 1]
                self._places.setdefault(text, (shard, row, start, end))

    def _claim(self) -> None:
        path = self.folder / MANIFEST
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except OSError as error:
            raise UserError(f"cannot be used ({error.strerror or error})", where=self.folder) from None
        except ValueError as error:
            raise UserError(
                f"not valid JSON ({error})", where=path, remedy="Remove this file alone; the shards stay good"
            ) from None
        if there is None:
            write_whole(path, {"key": self.key, **self.identity})
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
