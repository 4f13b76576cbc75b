"""Reading of shards: cuts with their audio in lhotse's Shar format, an index and checksums.

A folder of shards has `cuts.NNNNNN.jsonl.gz` and `recording.NNNNNN.tar`, as lhotse writes them; `index.npy` has one
:data:`ROW` per cut, `shards.json` the files of each shard with their lengths and SHA-256 sums. lhotse reads the first
two with `CutSet.from_shar(fields={"cuts": [...], "recording": [...]})`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from lhotse import MonoCut
from lhotse.audio import AudioSource

from retort.common.checksums import SUMS, verify
from retort.common.errors import BadUtterance, UserError
from retort.common.files import check_format, is_address
from retort.common.json_reader import parse_json, read_json
from retort.corpora.manifest import LONGEST_LINE, read_cut
from retort.corpora.open_cuts import SHARDS, check_cut, find_data
from retort.corpora.remote import RemoteFolder

FORMAT = 1
INDEX = "index.npy"
ROW = np.dtype(
    [
        ("name", "<u8"),  # the first 64 bits of the id's SHA-256
        ("duration", "<f8"),  # seconds
        ("rate", "<i4"),  # Hz
        ("shard", "<i4"),
        ("offset", "<i8"),  # of the audio in the tar file
        ("size", "<u4"),  # bytes
        ("crc32", "<u4"),
    ]
)
MOST_CUTS = 100_000
"""Maximum number of cuts of a shard."""
CACHE = 50 * 10**9
"""Default limit in bytes of the local copies of a remote folder."""
_OPEN = 64
"""Shards whose cuts and files are held open: more than the sampler draws from at a time."""
_NOT_PICKLED = ("_lines", "_tars", "_rows")
_REMEDY = "Write the shards again with `retort prepare ... --shards`"


class Shard(NamedTuple):
    """One shard: its files with bytes and SHA-256, and the rows of the index that belong to it."""

    cuts: tuple[str, int, str]
    audio: tuple[str, int, str]
    rows: range


def name_hash(name: str) -> int:
    """The id of a cut as the index has it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def is_shards(source: str) -> bool:
    """Whether an entry of `data.train` is a folder of shards: an address is always one."""
    return is_address(source) or (find_data(source) / SHARDS).is_file()


class Shards:
    """A folder of shards; index and list are verified when it is opened, cuts and audio when they are read.

    Args:
        source: a folder (see :func:`retort.corpora.open_cuts.find_data`) or an address that fsspec reads.
        cache: limit in bytes of the local copies of a remote folder.

    Raises:
        UserError: it does not exist, is damaged, or has another format.
    """

    def __init__(self, source: str, cache: int = CACHE) -> None:
        self.source = source
        self._remote = RemoteFolder(source, cache) if is_address(source) else None
        if self._remote is None:
            self._folder = find_data(source)
            if not (self._folder / SUMS).is_file():
                raise UserError("no list of checksums", where=self._folder / SUMS, remedy=_REMEDY)
            verify(self._folder, SHARDS, INDEX, remedy=_REMEDY)
            records, self._index = self._folder / SHARDS, self._folder / INDEX
        else:
            records, self._index = self._copies(self._remote)
        try:
            self.shards = _read_records(records)
            count = len(self.rows())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"damaged ({error})", where=records, remedy=_REMEDY) from None
        if count != (self.shards[-1].rows.stop if self.shards else 0):
            raise UserError(
                f"its index has {count:,} cuts, not those of shards.json", where=source, remedy=_REMEDY
            )
        self._prepare()

    def _copies(self, remote: RemoteFolder) -> tuple[Path, Path]:
        """The list and the index of a remote folder."""
        try:
            listed = parse_json(remote.read(SUMS))["files"]
            files = [(name, int(listed[name]["bytes"]), str(listed[name]["sha256"])) for name in (SHARDS, INDEX)]
            records, index = (remote.local(*each) for each in files)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"damaged ({error})", where=f"{self.source}/{SUMS}", remedy=_REMEDY) from None
        except FileNotFoundError:
            raise UserError(
                "not a folder of shards, or incomplete", where=self.source, remedy="Check the address"
            ) from None
        return records, index

    def _prepare(self) -> None:
        self._lines = lru_cache(_OPEN)(self._read_lines)
        self._tars = lru_cache(_OPEN)(self._open_tar)
        self._rows = self.rows()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def rows(self) -> np.ndarray:
        """The index `(cuts,)` of :data:`ROW`, mapped from disk again, so that what is read of it can be released."""
        found = np.load(self._index, mmap_mode="r", allow_pickle=False)
        if found.dtype != ROW or found.ndim != 1:
            raise ValueError(f"an index {found.shape} of {found.dtype}")
        return cast(np.ndarray, found)

    def cut(self, number: int) -> MonoCut:
        """A cut without its audio.

        Raises:
            BadUtterance: its line is invalid.
            UserError: its shard is damaged or cannot be read.
        """
        return self._cut(number, self._rows[number])

    def open(self, number: int) -> MonoCut:
        """A cut with its audio in memory, as it is stored.

        Raises:
            BadUtterance: its line is invalid, or its audio is damaged.
            UserError: its shard is damaged or cannot be read.
        """
        row = self._rows[number]
        cut = self._cut(number, row)
        content = os.pread(self._tars(int(row["shard"])).fileno(), int(row["size"]), int(row["offset"]))
        if len(content) != row["size"] or zlib.crc32(content) != row["crc32"]:
            raise BadUtterance("its audio in the shard is damaged", where=cut.id, remedy=_REMEDY)
        assert cut.recording is not None
        channels = cut.recording.sources[0].channels
        cut.recording.sources = [AudioSource(type="memory", channels=channels, source=content)]
        return cut

    def transcripts(self, chosen: np.ndarray) -> Iterator[str]:
        """The texts of these cuts, ascending numbers, in order; an empty one for a line that is not valid.

        Raises:
            UserError: a shard is damaged or cannot be read.
        """
        limits = np.searchsorted(chosen, [each.rows.start for each in self.shards] + [len(self.rows())])
        for number, (first, last) in enumerate(pairwise(limits)):
            if first == last:
                continue
            lines, start = self._read_lines(number), self.shards[number].rows.start
            for row in chosen[first:last]:
                try:
                    yield str(parse_json(lines[row - start])["supervisions"][0]["text"])
                except (ValueError, KeyError, TypeError, IndexError, RecursionError):
                    yield ""  # rejected when it is read for training

    def _cut(self, number: int, row: np.void) -> MonoCut:
        shard = int(row["shard"])
        place = number - self.shards[shard].rows.start
        try:
            cut = check_cut(read_cut(self._lines(shard)[place], in_shard=True))
        except BadUtterance as error:
            raise BadUtterance(error.what, where=f"{self.source}: cut {number}") from None
        if name_hash(cut.id) != row["name"]:
            raise BadUtterance("not the cut of the index", where=cut.id, remedy=_REMEDY)
        return cut

    def _path(self, file: tuple[str, int, str]) -> Path:
        name, size, digest = file
        try:
            if self._remote is not None:
                return self._remote.local(name, size, digest)
            path = self._folder / name
            if path.stat().st_size == size:
                return path
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot be read ({reason})", where=f"{self.source}/{name}") from None
        raise UserError("damaged: its length differs from shards.json", where=path, remedy=_REMEDY)

    def _open_tar(self, shard: int) -> BinaryIO:
        return self._path(self.shards[shard].audio).open("rb")

    def _read_lines(self, shard: int) -> list[bytes]:
        """The lines of a shard's cuts, verified."""
        entry = self.shards[shard]
        path = self._path(entry.cuts)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.cuts[2]:
            raise UserError("damaged: its SHA-256 differs from shards.json", where=path, remedy=_REMEDY)
        lines: list[bytes] = []
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            while len(lines) < len(entry.rows) and (line := file.readline(LONGEST_LINE)):
                lines.append(line)
        if len(lines) != len(entry.rows):
            raise UserError(f"it has {len(lines)} cuts, not {len(entry.rows)}", where=path, remedy=_REMEDY)
        return lines


def _read_records(path: Path) -> list[Shard]:
    content = read_json(path)
    check_format(content["format"], FORMAT, path)
    shards, start = [], 0
    for number, each in enumerate(content["shards"]):
        count = int(each["cuts"])
        if not 0 <= count <= MOST_CUTS:
            raise ValueError(f"shard {number} has {count:,} cuts")
        files = []
        for name in shard_files(number):
            size, digest = int(each["files"][name]["bytes"]), str(each["files"][name]["sha256"])
            files.append((name, size, digest))
        shards.append(Shard(files[0], files[1], range(start, start + count)))
        start += count
    return shards


def shard_files(number: int) -> tuple[str, str]:
    """Names of the files of a shard: cuts, and audio."""
    return f"cuts.{number:06d}.jsonl.gz", f"recording.{number:06d}.tar"
