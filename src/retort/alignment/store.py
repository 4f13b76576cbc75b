"""Alignments on disk: shards of safetensors, with the tree, lexicon and counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from retort.alignment.alignment import Alignment, Timed, segments
from retort.alignment.phones import priors, self_loops
from retort.alignment.tree import SenoneTree
from retort.common.checksums import seal, verify
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import parse_json, read_json
from retort.text.lexicon import Lexicon, read_lexicon

SHARD_SUFFIX = ".safetensors"
_REMEDY = "Remove the folder and align again"


class Shard(Sequence[Alignment]):
    """Alignments in one file, read one by one."""

    def __init__(self, path: Path, tree: SenoneTree) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, framework="numpy")
        described = self._file.metadata()
        utterances = parse_json(described["utterances"])
        self.ids: list[str] = [name for name, _ in utterances]
        self._words: list[list[str]] = [words for _, words in utterances]
        self.facts: dict[str, Any] = parse_json(described["facts"])
        """Further values that were written into the shard."""
        self._symbols = tree.phones.symbols
        counts = self._file.get_tensor("counts")
        self._offsets = np.concatenate([np.zeros((1, 3), np.int64), counts.cumsum(0)])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> Alignment: ...
    @overload
    def __getitem__(self, row: slice) -> list[Alignment]: ...
    def __getitem__(self, row: int | slice) -> Alignment | list[Alignment]:
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        name = self.ids[row]
        (frame, phone, word), (frames, phones, words) = self._offsets[row : row + 2].tolist()
        held = self._file.get_slice("phones")[phone:phones]
        starts = np.cumsum(held[:, 1]) - held[:, 1]
        times = self._file.get_slice("words")[word:words].tolist()
        return Alignment(
            name,
            [Timed(symbol, *time) for symbol, time in zip(self._words[row], times)],
            [
                Timed(self._symbols[symbol], start, count)
                for (symbol, count), start in zip(held.tolist(), starts.tolist())
            ],
            self._file.get_slice("senones")[frame:frames],
        )

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of frames and number of visits of each senone, `(S,)` each."""
        return self._file.get_tensor("frames"), self._file.get_tensor("visits")


class AlignmentStore(Mapping[str, Alignment]):
    """Alignments by utterance id, read from disk one by one.

    Args:
        folder: folder of the store, or that of `align_corpus`.

    Raises:
        UserError: the folder contains no store, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.folder = Path(folder)
        if not (self.folder / "store.json").exists() and (self.folder / "alignments").exists():
            self.folder /= "alignments"
        if not (self.folder / "store.json").exists():
            raise UserError("it contains no alignments", where=folder, remedy="Align first")
        verify(self.folder, remedy=_REMEDY)
        try:
            content = read_json(self.folder / "store.json")
            self.frame_shift = float(content["frame_shift"])
            """Seconds."""
            self.skipped: dict[str, str] = content["skipped"]
            """Utterances without an alignment, with the reasons."""
            self.tree = SenoneTree.load(self.folder / "tree.json")
            self.lexicon: Lexicon = read_lexicon(self.folder / "lexicon.txt", stress="keep")
            """Pronunciations of the words that occur."""
            counts = load_file(self.folder / "counts.safetensors")
            self.frames: NDArray[np.int64] = counts["frames"]
            """(S,): number of frames of each senone."""
            self.visits: NDArray[np.int64] = counts["visits"]
            """(S,): number of visits of each senone."""
            self._places: dict[str, tuple[Shard, int]] = {}
            for path in _shards(self.folder):
                shard = Shard(path, self.tree)
                self._places.update((name, (shard, row)) for row, name in enumerate(shard.ids))
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            SafetensorError,
        ) as error:
            raise UserError(f"cannot be read ({error})", where=folder, remedy=_REMEDY) from None

    def __getitem__(self, name: str) -> Alignment:
        shard, row = self._places[name]
        return shard[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def self_loops(self) -> NDArray[np.float64]:
        """(S,): self-loop probability of each senone."""
        return self_loops(self.frames, self.visits)

    @cached_property
    def priors(self) -> NDArray[np.float64]:
        """(S,): relative frequency of each senone."""
        return priors(self.frames)


def write_shard(path: Path, alignments: Iterable[Alignment], tree: SenoneTree, **facts: Any) -> None:
    """Write one shard, atomically.

    Args:
        path: file in the folder of a store; its name ends in :data:`SHARD_SUFFIX`.
        facts: further JSON values; see :attr:`Shard.facts`.
    """
    from safetensors.numpy import save

    held = list(alignments)
    ids = tree.phones.ids
    phones = [(ids[phone.symbol], phone.frames) for each in held for phone in each.phones]
    words = [(word.start, word.frames) for each in held for word in each.words]
    counts = [(len(each.senones), len(each.phones), len(each.words)) for each in held]
    frames, visits = np.zeros(tree.count, np.int64), np.zeros(tree.count, np.int64)
    for each in held:
        frames += np.bincount(each.senones, minlength=tree.count)
        visits += np.bincount(np.array(segments(each, "senone")[0], np.int64), minlength=tree.count)
    arrays = {
        "senones": np.concatenate([np.zeros(0, np.int32), *(each.senones for each in held)]),
        "phones": np.array(phones, np.int32).reshape(-1, 2),
        "words": np.array(words, np.int32).reshape(-1, 2),
        "counts": np.array(counts, np.int64).reshape(-1, 3),
        "frames": frames,
        "visits": visits,
    }
    described = [(each.id, [word.symbol for word in each.words]) for each in held]
    write_whole(path, save(arrays, {"utterances": json.dumps(described), "facts": json.dumps(facts)}))


def finish_store(
    folder: Path, tree: SenoneTree, lexicon: Lexicon, skipped: Mapping[str, str], frame_shift: float
) -> AlignmentStore:
    """Write tree, lexicon and counts next to the shards, and open the store."""
    from safetensors.numpy import save

    frames, visits = np.zeros(tree.count, np.int64), np.zeros(tree.count, np.int64)
    for path in _shards(folder):
        more_frames, more_visits = Shard(path, tree).counts()
        frames, visits = frames + more_frames, visits + more_visits
    tree.save(folder / "tree.json")
    write_whole(folder / "lexicon.txt", str(lexicon))
    write_whole(folder / "counts.safetensors", save({"frames": frames, "visits": visits}))
    seal(folder)
    content = {"frame_shift": frame_shift, "skipped": dict(skipped)}
    write_whole(folder / "store.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return AlignmentStore(folder)


def reasons(skipped: Mapping[str, str]) -> str:
    """The first few as ` (ID: REASON; ...)`."""
    text = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
    return f" ({text})" if text else ""


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SHARD_SUFFIX}") if path.stem.isdigit())
