"""Features for the alignment, stored in shards of about ten minutes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.aligner import obstacle
from retort.alignment.mfcc import CEPSTRA, DIM, FRAME_SHIFT, with_differences
from retort.alignment.phones import STATES
from retort.common.errors import BadUtterance, UserError
from retort.common.files import write_whole
from retort.common.json_reader import parse_json
from retort.text.lexicon import Lexicon

SHARD_SECONDS = 600.0


class Utterance(NamedTuple):
    """An utterance without features."""

    id: str
    speaker: str
    words: tuple[str, ...]
    cut: Any
    """Argument of the caller's feature function."""


class FeatureUtterance(NamedTuple):
    """An utterance with features."""

    id: str
    words: tuple[str, ...]
    features: NDArray[np.float32]
    """(T, 39), with zero mean per speaker and unit variance over all."""


@dataclass
class ShardJob:
    path: Path
    utterances: list[Utterance]
    lexicon: Lexicon
    features: Callable[[Any], NDArray[np.float32]]


class Normalisation(NamedTuple):
    means: dict[str, NDArray[np.float64]]
    """Mean of each speaker, `(13,)`."""
    deviation: NDArray[np.float64]
    """(39,)"""
    frames: int
    seconds: float
    """Core seconds for the features."""
    skipped: dict[str, str]


def divide(utterances: Sequence[Utterance], seconds: Callable[[Any], float]) -> list[list[Utterance]]:
    """Divide the utterances, in order, into parts of about :data:`SHARD_SECONDS`."""
    parts: list[list[Utterance]] = []
    left = 0.0
    for each in utterances:
        if left <= 0:
            parts.append([])
            left = SHARD_SECONDS
        parts[-1].append(each)
        left -= seconds(each.cut)
    return parts


def make_shard(job: ShardJob) -> None:
    """Write the cepstra of utterances that can be aligned, and the reasons for the others; an existing shard
    is skipped."""
    from safetensors.numpy import save

    if job.path.exists():
        return
    began = time.process_time()
    aligned: list[tuple[Utterance, NDArray[np.float32]]] = []
    skipped: dict[str, str] = {}
    for each in job.utterances:
        reason = obstacle(each.words, 1 << 40, job.lexicon, STATES)
        if not reason:
            try:
                cepstra = np.asarray(job.features(each.cut), np.float32)
            except BadUtterance as error:
                reason = error.what
            else:
                reason = obstacle(each.words, len(cepstra), job.lexicon, STATES)
                reason = reason or ("" if np.isfinite(cepstra).all() else "its features are not finite")
        if reason:
            skipped[each.id] = reason
        else:
            aligned.append((each, cepstra))
    slopes = [with_differences(cepstra)[:, CEPSTRA:] for _, cepstra in aligned]
    arrays = {
        "cepstra": np.concatenate([np.zeros((0, CEPSTRA), np.float32), *(cepstra for _, cepstra in aligned)]),
        "lengths": np.array([len(cepstra) for _, cepstra in aligned], np.int64),
        "sums": np.array([cepstra.sum(0, np.float64) for _, cepstra in aligned]).reshape(-1, CEPSTRA),
        "squares": np.array([np.square(cepstra).sum(0, np.float64) for _, cepstra in aligned]).reshape(
            -1, CEPSTRA
        ),
        "slopes": np.array([np.square(each).sum(0, np.float64) for each in slopes]).reshape(
            -1, DIM - CEPSTRA
        ),
    }
    described = {
        "utterances": [(each.id, each.speaker or each.id, each.words) for each, _ in aligned],
        "skipped": skipped,
        "seconds": time.process_time() - began,
    }
    write_whole(job.path, save(arrays, {"described": json.dumps(described)}))


def _open(path: Path, *names: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the named arrays and the description of a shard."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in names}
            return arrays, parse_json(file.metadata()["described"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"cannot be read ({error})", where=path, remedy="Remove its folder and align again"
        ) from None


def normalisation(shards: Sequence[Path]) -> Normalisation:
    """Means and standard deviations over all shards, with their totals."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    square = np.zeros(DIM)
    seconds, skipped = 0.0, {}
    for path in shards:
        arrays, described = _open(path, "lengths", "sums", "squares", "slopes")
        for (_, speaker, _), total, length in zip(described["utterances"], arrays["sums"], arrays["lengths"]):
            sums[speaker] = sums.get(speaker, 0.0) + total
            counts[speaker] = counts.get(speaker, 0) + int(length)
        square += np.concatenate([arrays["squares"].sum(0), arrays["slopes"].sum(0)])
        seconds += described["seconds"]
        skipped.update(described["skipped"])
    frames = sum(counts.values())
    if not frames:
        return Normalisation({}, np.ones(DIM), 0, seconds, skipped)
    means = {speaker: total / counts[speaker] for speaker, total in sums.items()}
    for speaker, mean in means.items():
        square[:CEPSTRA] -= counts[speaker] * np.square(mean)
    return Normalisation(means, np.sqrt(np.maximum(square / frames, 1e-8)), frames, seconds, skipped)


def read_shard(
    path: Path, means: dict[str, NDArray[np.float64]], deviation: NDArray[np.float64]
) -> Iterator[FeatureUtterance]:
    """The normalised utterances of a shard."""
    arrays, described = _open(path, "cepstra", "lengths")
    start = 0
    for (name, speaker, words), length in zip(described["utterances"], arrays["lengths"].tolist()):
        cepstra = arrays["cepstra"][start : start + length] - means[speaker].astype(np.float32)
        features = (with_differences(cepstra) / deviation).astype(np.float32)
        yield FeatureUtterance(name, tuple(words), features)
        start += length


def hours(frames: int) -> float:
    return frames * FRAME_SHIFT / 3600
