"""Writing of shards in lhotse's Shar format, by one process or several, and in parts of one corpus."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import MonoCut, Recording
from lhotse.shar.utils import to_shar_placeholder
from lhotse.utils import compute_num_samples, fastcopy

from retort.audio.files import open_source
from retort.common.checksums import FORMAT as SUMS_FORMAT
from retort.common.checksums import SUMS, sha256
from retort.common.errors import BadUtterance, UserError
from retort.common.files import clear_partial, write_whole
from retort.common.json_reader import read_json
from retort.common.locks import one_at_a_time
from retort.common.progress import CountProgress
from retort.common.workers import workers
from retort.corpora.cuts import Rejected, write_rejected
from retort.corpora.shards import FORMAT, INDEX, MOST_CUTS, ROW, SHARDS, name_hash, shard_files

AUDIO = ("stored", "flac", "opus")
"""Audio of the shards: the files as they are, FLAC without loss, or Opus."""
SHARD_CUTS, SHARD_SECONDS = 1000, 4 * 3600.0
"""A shard is closed when it has this many cuts, or when the next cut would exceed this duration."""
_PARTS = "parts"
_LARGEST = 2**32 - 1
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_Job = tuple[int, Sequence[MonoCut], str]


@dataclass(frozen=True)
class Written:
    """Shards after one call.

    Attributes:
        done, total: number of shards that exist, and of all.
        complete: whether the folder can be used.
        rejected: utterances that are not in the shards, with the reason; of a complete folder.
    """

    done: int
    total: int
    complete: bool
    rejected: list[Rejected]


def write_shards(
    cuts: Sequence[MonoCut],
    folder: Path,
    *,
    audio: str = "stored",
    shard_cuts: int = SHARD_CUTS,
    shard_seconds: float = SHARD_SECONDS,
    part: tuple[int, int] = (1, 1),
    processes: int = 1,
    progress: CountProgress | None = None,
) -> Written:
    """Write the shards of one part; the call that finds all of them completes the folder.

    The division into shards depends only on the cuts, and the content of a shard only on its cuts, so that the result
    is the same for any number of parts and processes. Valid shards of an earlier call are kept.

    Args:
        cuts: cuts of one split in the order of its manifest; their ids are distinct.
        audio: one of :data:`AUDIO`. A part of a recording is stored as FLAC, or, if that would change it, as WAV.
        part: number of this part, counted from 1, and number of parts.
        processes: number of processes; 0 for one per core.
        progress: called with the number of shards done and in this part.

    Raises:
        UserError: a shard cannot be written, or two cuts have the same id.
    """
    if not 1 <= shard_cuts <= MOST_CUTS:
        raise UserError(f"shards of {shard_cuts:,} cuts", remedy=f"Choose 1 to {MOST_CUTS:,}")
    jobs: list[_Job] = [
        (number, chunk, _key(chunk, audio))
        for number, chunk in enumerate(_chunks(cuts, shard_cuts, shard_seconds))
    ]
    if (finished := _finished(folder, jobs)) is not None:
        return finished
    (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    clear_partial(folder, within=True)
    _reopen(folder)
    own = [job for job in jobs if job[0] % part[1] == part[0] - 1]
    missing = [job for job in own if not _is_there(folder, job[0], job[2])]
    with workers(processes, "the preparation of shards", "Use fewer --workers") as pool:
        for done, _ in enumerate(pool.map(partial(_write_shard, folder, audio), missing), 1):
            if progress is not None:
                progress(len(own) - len(missing) + done, len(own))
    with one_at_a_time(folder / ".lock"):
        if (finished := _finished(folder, jobs)) is not None:  # another part has completed it meanwhile
            return finished
        there = sum(_is_there(folder, number, key) for number, _, key in jobs)
        if there < len(jobs):
            return Written(there, len(jobs), False, [])
        return Written(there, there, True, _complete(folder, len(jobs), audio))


def _chunks(cuts: Sequence[MonoCut], most: int, seconds: float) -> Iterator[list[MonoCut]]:
    chunk: list[MonoCut] = []
    total = 0.0
    for cut in cuts:
        if chunk and (len(chunk) == most or total + cut.duration > seconds):
            yield chunk
            chunk, total = [], 0.0
        chunk.append(cut)
        total += cut.duration
    if chunk:
        yield chunk


def _key(cuts: Sequence[MonoCut], audio: str) -> str:
    """Hash of everything that determines the content of a shard."""
    digest = hashlib.sha256(f"{FORMAT} {audio}\n".encode())
    for cut in cuts:
        content = cut.to_dict()
        for source, each in zip(cut.recording.sources, content["recording"]["sources"]):
            path = Path(source.source)
            each["source"] = path.name  # the same if the corpus is elsewhere
            with suppress(OSError):
                each["size"] = path.stat().st_size
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def _part_file(folder: Path, number: int) -> Path:
    return folder / _PARTS / f"{number:06d}.json"


def _is_there(folder: Path, number: int, key: str) -> bool:
    """Whether a shard was written earlier, with the same content, and its files have the right length."""
    try:
        return _is_valid(folder, read_json(_part_file(folder, number)), key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_valid(folder: Path, record: dict[str, Any], key: str) -> bool:
    files = record["files"].items()
    return record["key"] == key and all((folder / name).stat().st_size == each["bytes"] for name, each in files)


def _finished(folder: Path, jobs: Sequence[_Job]) -> Written | None:
    """The result of an earlier call that has completed the folder with the same content."""
    try:
        records = read_json(folder / SHARDS)["shards"]
        keys = [job[2] for job in jobs]
        if len(records) != len(keys) or not all(map(partial(_is_valid, folder), records, keys)):
            return None
        return Written(len(keys), len(keys), True, _rejected(records))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_shard(folder: Path, audio: str, job: _Job) -> None:
    number, cuts, key = job
    names = shard_files(number)
    lines, rows, rejected = [], [], []
    partial_tar = folder / _PARTS / f"{number:06d}.{os.getpid()}.tar"
    try:
        with partial_tar.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for cut in cuts:
                    try:
                        suffix, content, channels = _audio(cut, audio)
                    except BadUtterance as error:
                        rejected.append([cut.id, error.what])
                        continue
                    stored = _stored_cut(cut, channels)
                    offset = _add(tar, f"{cut.id}{suffix}", content)
                    _add(tar, f"{cut.id}.json", json.dumps(stored.recording.to_dict()).encode() + b"\n")
                    rate, crc = cut.recording.sampling_rate, zlib.crc32(content)
                    rows.append(
                        (name_hash(cut.id), cut.duration, rate, number, offset, len(content), crc)
                    )
                    lines.append(json.dumps(stored.to_dict(), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        packed = io.BytesIO()
        with gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as lines_file:
            lines_file.writelines(lines)
        write_whole(folder / names[0], packed.getvalue())
        partial_tar.rename(folder / names[1])
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=folder, remedy="Free space and run again"
        ) from None
    finally:
        partial_tar.unlink(missing_ok=True)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    record = {
        "key": key,
        "cuts": len(rows),
        "seconds": sum(row[1] for row in rows),
        "files": files,
        "rejected": rejected,
    }
    _save_rows(np.array(rows, ROW), folder / _PARTS / f"{number:06d}.npy")
    write_whole(_part_file(folder, number), json.dumps(record))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member, the same bytes on every machine; return the position of its content."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
    blocks = -(-len(content) // tarfile.BLOCKSIZE)
    return int(tar.offset) - blocks * tarfile.BLOCKSIZE


def _audio(cut: MonoCut, audio: str) -> tuple[str, bytes, int]:
    """Suffix, bytes and number of channels of a cut's audio.

    Raises:
        BadUtterance: it cannot be read, or does not fit the format.
    """
    path = Path(cut.recording.sources[0].source)
    whole = cut.start == 0 and cut.duration == cut.recording.duration
    source = open_source(path)
    if whole and (audio == "stored" or (audio, path.suffix.lower()) == ("flac", ".flac")):
        content, suffix = path.read_bytes(), path.suffix.lower()
    else:
        rate = source.info.sampling_rate
        first = compute_num_samples(cut.start, rate)
        blocks = list(source.blocks(first, first + compute_num_samples(cut.duration, rate)))
        if not blocks:
            raise BadUtterance("no samples in it", where=cut.id)
        suffix, content = _encoded(np.concatenate(blocks), rate, audio)
    if len(content) > _LARGEST:
        raise BadUtterance(f"its audio has {len(content):,} bytes, too many for a shard", where=cut.id)
    return suffix, content, source.info.channels


def _encoded(samples: np.ndarray, rate: int, audio: str) -> tuple[str, bytes]:
    """Suffix and bytes of `samples (N, channels)` float32: Opus, or the smallest format without loss."""
    if audio == "opus":
        if rate not in _OPUS_RATES:
            raise BadUtterance(f"Opus has no sampling rate of {rate} Hz")
        return ".opus", _written(samples, rate, "OGG", "OPUS")
    for subtype in ("PCM_16", "PCM_24"):
        if samples.shape[1] <= 8 and rate < 655_350:
            content = _written(samples, rate, "FLAC", subtype)
            if np.array_equal(soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0], samples):
                return ".flac", content
    return ".wav", _written(samples, rate, "WAV", "FLOAT")


def _written(samples: np.ndarray, rate: int, format: str, subtype: str) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=format, subtype=subtype)
    return content.getvalue()


def _stored_cut(cut: MonoCut, channels: int) -> MonoCut:
    """The cut as a shard has it: its recording is its own audio."""
    recording: Recording = to_shar_placeholder(cut.recording, cut)
    if len(recording.channel_ids or []) != channels:
        recording = fastcopy(recording, channel_ids=list(range(channels)))
        recording.sources[0].channels = list(range(channels))
    return fastcopy(cut, start=0.0, recording=recording)


def _reopen(folder: Path) -> None:
    """Divide the records of a complete folder into those of its shards, so that it can be continued."""
    if not (folder / SHARDS).is_file():
        return
    with one_at_a_time(folder / ".lock"):
        try:
            records = read_json(folder / SHARDS)["shards"]
            rows = np.load(folder / INDEX, allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError):
            records, rows = [], np.empty(0, ROW)
        start = 0
        for number, record in enumerate(records):
            _save_rows(rows[start : start + record["cuts"]], folder / _PARTS / f"{number:06d}.npy")
            write_whole(_part_file(folder, number), json.dumps(record))
            start += record["cuts"]
        for name in (SHARDS, INDEX, SUMS):
            (folder / name).unlink(missing_ok=True)


def _save_rows(rows: np.ndarray, path: Path) -> None:
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    write_whole(path, content.getvalue())


def _complete(folder: Path, count: int, audio: str) -> list[Rejected]:
    """Write index, list and checksums from those of the shards; return the rejected utterances."""
    records = [read_json(_part_file(folder, number)) for number in range(count)]
    parts = [np.load(folder / _PARTS / f"{number:06d}.npy", allow_pickle=False) for number in range(count)]
    rows = np.concatenate(parts) if parts else np.empty(0, ROW)
    if len(np.unique(rows["name"])) < len(rows):
        raise UserError("two cuts have the same id", where=folder, remedy="Give each cut its own id")
    _save_rows(rows, folder / INDEX)
    summary: dict[str, Any] = {
        "format": FORMAT,
        "audio": audio,
        "cuts": len(rows),
        "seconds": float(rows["duration"].sum()),
        "shards": records,
    }
    write_rejected(_rejected(records), folder / "rejected.tsv")
    files = _known(folder, count)
    for path in folder.glob("*.[0-9]*.*"):  # of an earlier, larger corpus
        if path.name not in files:
            path.unlink()
    content = json.dumps(summary, indent=1) + "\n"
    listed = {
        SHARDS: {"bytes": len(content.encode()), "sha256": hashlib.sha256(content.encode()).hexdigest()},
        INDEX: {"bytes": (folder / INDEX).stat().st_size, "sha256": sha256(folder / INDEX)},
    }
    write_whole(folder / SUMS, json.dumps({"format": SUMS_FORMAT, "files": listed}, indent=1) + "\n")
    write_whole(folder / SHARDS, content)  # last: marks the folder as complete
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    return _rejected(records)


def _known(folder: Path, count: int) -> set[str]:
    return {name for number in range(count) for name in shard_files(number)}


def _rejected(records: Sequence[dict[str, Any]]) -> list[Rejected]:
    return [Rejected(*each) for record in records for each in record["rejected"]]
