"""Features of cuts: computed from the wave each time, or computed once and stored on disk."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lhotse import CutSet, Features
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from torch import Tensor

from retort.audio.cmvn import normalised
from retort.audio.fbank import FRAME_SHIFT
from retort.audio.features import make_extractor
from retort.common.errors import BadUtterance, UserError
from retort.common.files import flush, write_whole
from retort.common.json_reader import parse_json
from retort.common.locks import one_at_a_time
from retort.common.progress import CountProgress
from retort.config.loading import differing
from retort.config.schema import FeatureConfig
from retort.corpora.cuts import Rejected, is_mix
from retort.corpora.manifest import STORAGE, read_features
from retort.corpora.waves import load_samples

CHECKSUM = "features_crc32"
"""Custom field of a cut whose features Retort stored: the CRC-32 of their bytes."""
_MANIFEST, _REJECTED, _DONE, _STORAGE = "cuts.jsonl", "rejected.jsonl", "done", "fbank"
_HEADER = 1024
"""Maximum bytes before the values in a `.npy` file."""


class CutFeatures:
    """Features of one cut after CMVN, read from disk if the cut has them, otherwise computed from its wave."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self._extract = make_extractor(config)

    def __call__(self, cut: Cut) -> Tensor:
        """`(T, bins)` float32.

        Raises:
            BadUtterance: the audio cannot be read, is empty, silent, not finite, or does not match the manifest.
        """
        if cut.has_features:
            return normalised(self._of_disk(cut), self.config)
        return self.of_samples(load_samples(cut, self.config.sampling_rate))

    def extract(self, samples: np.ndarray) -> Tensor:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` before CMVN."""
        return torch.from_numpy(self._extract(samples))

    def of_samples(self, samples: np.ndarray) -> Tensor:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` after CMVN."""
        return normalised(self.extract(samples), self.config)

    def made(self, cut: Cut) -> Tensor:
        """Features before CMVN, from the wave."""
        return self.extract(load_samples(cut, self.config.sampling_rate))

    @staticmethod
    def stored(cut: Cut) -> Tensor:
        """Features before CMVN, from disk: `(T, bins)` float32.

        Raises:
            BadUtterance: the file is missing or damaged, or does not match the manifest.
        """
        features = cut.features
        path = Path(features.storage_path or "") / str(features.storage_key)
        try:
            if features.storage_type != STORAGE:
                raise ValueError(f"stored as {features.storage_type}")
            # Not NumPy's load, which also opens archives; mapped first, because a header may state any size.
            array = np.array(np.lib.format.open_memmap(path, mode="r"))
            if array.shape != (features.num_frames, features.num_features) or array.dtype.kind != "f":
                raise ValueError(f"an array {array.shape} of {array.dtype}")
            array = np.ascontiguousarray(array, dtype=np.float32)
            checksum = (cut.custom or {}).get(CHECKSUM)
            if checksum is not None and zlib.crc32(array.data) != checksum:
                raise ValueError("its checksum differs")
            if not np.isfinite(array).all():
                raise ValueError("it has values that are not finite")
        except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
            raise BadUtterance(
                f"its stored features cannot be read ({error})",
                where=cut.id,
                remedy="Remove the features: they are computed from the audio",
            ) from None
        return torch.from_numpy(array)

    def _of_disk(self, cut: Cut) -> Tensor:
        """Stored features; damaged ones that Retort stored are computed again."""
        try:
            stored = self.stored(cut)
        except BadUtterance:
            if CHECKSUM not in (cut.custom or {}) or not cut.has_recording:
                raise
            return self.made(cut)
        if stored.shape[1] != self.config.bins:
            raise BadUtterance(
                f"its stored features have {stored.shape[1]} bins, not {self.config.bins}", where=cut.id
            )
        return stored


def features_key(source: str, cuts: Iterable[Cut], config: FeatureConfig) -> str:
    """Name of the cache of these cuts' features, a hash of the cuts, their audio and the settings."""
    # Only filter banks are stored, before their normalisation; other keys count if they are not the default, which keeps
    # older caches valid.
    left_out = {"kind", "bins", "sampling_rate", "cmvn", "statistics", "storage"}
    others = {name: value for name, value in differing(config).items() if name not in left_out}
    settings = {"bins": config.bins, "sampling_rate": config.sampling_rate, **others, "cmvn": "", "storage": ""}
    digest = hashlib.sha256(json.dumps([source, settings]).encode())
    versions: dict[str, str] = {}
    for cut in cuts:
        channel = "mix" if is_mix(cut) else cut.channel
        digest.update(f"{cut.id} {cut.start} {cut.duration} {cut.recording_id} {channel}\n".encode())
        for source_file in cut.recording.sources:
            if source_file.source not in versions:
                versions[source_file.source] = _version(Path(source_file.source))
                digest.update(versions[source_file.source].encode())
    return digest.hexdigest()[:16]


def _version(path: Path) -> str:
    """Version of a file, since a corpus may be created again with the same names."""
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing\n"
    return f"{path} {status.st_size} {status.st_mtime_ns}\n"


def store_features(
    cuts: CutSet, folder: Path, config: FeatureConfig, progress: CountProgress | None = None
) -> tuple[CutSet, list[Rejected]]:
    """Compute the features of every cut once; valid features of an earlier call are reused.

    If two processes compute the same features, one of them waits.

    Returns:
        The cuts with their features, and the rejected ones with the reason.

    Raises:
        UserError: the disk is full, or no cut is left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / "lock"):
            cached, rejected = _stored_earlier(cuts, folder)
            if not (folder / _DONE).exists() or len(cached) + len(rejected) < len(cuts):
                (folder / _DONE).unlink(missing_ok=True)
                _make_features(cuts, folder, config, cached, progress)
                cached, rejected = _stored_earlier(cuts, folder)
    except OSError as error:  # a full disk may raise only when the writer is closed
        raise UserError(
            f"features cannot be written ({error})", where=folder, remedy="Free space and run again"
        ) from None
    stored = [_with_features(cut, cached[cut.id]) for cut in cuts if cut.id in cached]
    if not stored:
        reasons = "; ".join(sorted({each.reason for each in rejected})[:3])
        raise UserError(f"no utterance has usable audio ({reasons})", where=folder)
    return CutSet.from_cuts(stored), rejected


class _Stored(NamedTuple):
    """A line of the manifest of stored features."""

    features: Features
    checksum: int | None
    """CRC-32 of the array's bytes; None if an earlier version wrote it."""

    def line(self, name: str) -> str:
        return json.dumps({"id": name, "features": self.features.to_dict(), CHECKSUM: self.checksum}) + "\n"


def _stored_earlier(cuts: CutSet, folder: Path) -> tuple[dict[str, _Stored], list[Rejected]]:
    """Features of an earlier call: entries that are readable and whose files have the right length."""
    wanted = set(cuts.ids)
    cached: dict[str, _Stored] = {}
    for line in _lines(folder / _MANIFEST):
        try:
            content = parse_json(line)
            name, checksum = content["id"], content.get(CHECKSUM)
            features = read_features("features", content["features"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadUtterance):
            continue
        features.storage_path = str(folder / _STORAGE)  # also if the folder was moved
        stored = _Stored(features, checksum if isinstance(checksum, int) else None)
        if isinstance(name, str) and name in wanted and _is_whole(name, stored):
            cached[name] = stored
    rejected = {}
    for line in _lines(folder / _REJECTED):
        try:
            name, reason = parse_json(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and name in wanted and name not in cached:
            rejected[name] = Rejected(name, str(reason))
    return cached, list(rejected.values())


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def _is_whole(name: str, stored: _Stored) -> bool:
    """Whether the file exists with the name of its utterance and the right length; its content is not checked."""
    features = stored.features
    path = Path(features.storage_path) / features.storage_key
    size = 4 * features.num_frames * features.num_features
    try:
        return features.storage_key == _key(name) and 0 < path.stat().st_size - size <= _HEADER
    except OSError:
        return False


def _key(name: str) -> str:
    """Path of an utterance's file; an id may contain a slash."""
    digest = hashlib.sha1(name.encode()).hexdigest()
    return f"{digest[:3]}/{digest}.npy"


def _make_features(
    cuts: CutSet,
    folder: Path,
    config: FeatureConfig,
    cached: dict[str, _Stored],
    progress: CountProgress | None,
) -> None:
    """Compute and store missing features; the marker of completeness is written last."""
    features, rejected, total = CutFeatures(config), [], len(cuts)
    made = dict(cached)
    write_whole(folder / _MANIFEST, "".join(each.line(name) for name, each in cached.items()))
    with (folder / _MANIFEST).open("a", encoding="utf-8") as manifest:
        for index, cut in enumerate(cuts):
            if cut.id not in made:
                try:
                    made[cut.id] = _stored(cut, features.made(cut), folder, config)
                    manifest.write(made[cut.id].line(cut.id))
                    manifest.flush()
                except BadUtterance as error:
                    rejected.append(Rejected(cut.id, error.what))
            if progress is not None:
                progress(index + 1, total)
        os.fsync(manifest.fileno())
    flush(folder / _STORAGE / _key(name) for name in made)
    write_whole(folder / _REJECTED, "".join(json.dumps([each.id, each.reason]) + "\n" for each in rejected))
    (folder / _DONE).touch()


def _stored(cut: Cut, features: Tensor, folder: Path, config: FeatureConfig) -> _Stored:
    array = np.ascontiguousarray(features.numpy(), dtype=np.float32)
    path = folder / _STORAGE / _key(cut.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    described = Features(
        type="fbank",
        num_frames=array.shape[0],
        num_features=array.shape[1],
        frame_shift=FRAME_SHIFT,
        sampling_rate=config.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=STORAGE,
        storage_path=str(folder / _STORAGE),
        storage_key=_key(cut.id),
        recording_id=cut.recording_id,
        channels=0,
    )
    return _Stored(described, zlib.crc32(array.data))


def _with_features(cut: Cut, stored: _Stored) -> Cut:
    custom = {**(cut.custom or {})}
    if stored.checksum is not None:
        custom[CHECKSUM] = stored.checksum
    return fastcopy(cut, features=stored.features, custom=custom or None)
