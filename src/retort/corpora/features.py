"""Filter banks of cuts: made from the wave at each visit, or made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet, NumpyFilesWriter
from lhotse.audio import get_audio_duration_mismatch_tolerance, set_audio_duration_mismatch_tolerance
from lhotse.cut import Cut, MonoCut
from torch import Tensor

from retort.audio.fbank import FRAME_SHIFT
from retort.audio.features import EXTRACTORS, normalised
from retort.audio.files import audio_info, check_wave
from retort.config import FeatureConfig
from retort.corpora.cuts import TOLERANCE, Rejected
from retort.errors import BadUtterance, UserError
from retort.files import write_whole
from retort.locks import one_at_a_time

Progress = Callable[[int, int], None]


class CutFeatures:
    """Features of one cut after CMVN, read from disk if the cut has them, else made from its wave."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self.extract = EXTRACTORS[config.kind](config)

    def __call__(self, cut: Cut) -> Tensor:
        """`(T, bins)` float32.

        Raises:
            BadUtterance: the audio cannot be read, is empty, silent, not finite, or is not what the manifest says.
        """
        if cut.has_features:
            return normalised(self.stored(cut), self.config)
        return self.of_samples(load_samples(cut, self.config.sampling_rate))

    def of_samples(self, samples: np.ndarray) -> Tensor:
        """`samples (N,)` float32 in [-1, 1] to `(T, bins)` after CMVN."""
        return normalised(self.extract(samples), self.config)

    def made(self, cut: Cut) -> Tensor:
        """Features before CMVN, from the wave."""
        return self.extract(load_samples(cut, self.config.sampling_rate))

    @staticmethod
    def stored(cut: Cut) -> Tensor:
        """Features before CMVN, from disk."""
        try:
            return torch.from_numpy(np.array(cut.features.load(), dtype=np.float32))
        except (OSError, ValueError, EOFError) as error:
            raise BadUtterance(
                f"its stored features cannot be read ({error})",
                where=cut.id,
                remedy="Remove the feature cache",
            ) from None


def load_samples(cut: Cut, sampling_rate: int) -> np.ndarray:
    """The cut's wave as `(N,)` float32, mono, at `sampling_rate`.

    Raises:
        BadUtterance: as :class:`CutFeatures`.
    """
    original = cut
    lhotse_log = logging.getLogger()
    level = lhotse_log.level
    lhotse_log.setLevel(logging.CRITICAL)  # lhotse logs a page before it raises; our one line says it
    _demand_stated_durations()
    try:
        if cut.sampling_rate != sampling_rate:
            cut = cut.resample(sampling_rate)
        if isinstance(cut, MonoCut):  # by itself it hears channel 0 alone; `transcribe` hears the mean of all
            audio = cut.recording.load_audio(offset=cut.start, duration=cut.duration)
        else:
            audio = cut.load_audio()
    except Exception as error:  # lhotse and soundfile raise many kinds; one bad file must not end a long job
        raise BadUtterance(f"its audio cannot be read ({_reason(original, error)})", where=cut.id) from None
    finally:
        lhotse_log.setLevel(level)
    samples = np.asarray(audio, dtype=np.float32).mean(axis=0)
    check_wave(samples, cut.id)
    return samples


def _demand_stated_durations() -> None:
    """By itself lhotse mirrors up to half a second of sound where a file is shorter than its manifest says."""
    if get_audio_duration_mismatch_tolerance() != TOLERANCE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it advises against any value below its own
            set_audio_duration_mismatch_tolerance(TOLERANCE)


def _reason(cut: Cut, error: Exception) -> str:
    """What the files themselves have wrong, for lhotse's words are about lhotse."""
    tracks = [track.cut for track in getattr(cut, "tracks", [])] or [cut]
    for recording in (each.recording for each in tracks if each.has_recording):
        for source in recording.sources:
            try:
                info = audio_info(source.source)
            except BadUtterance as found:
                return f"{found.where}: {found.what}"
            if recording.transforms:
                continue
            there, stated = info[:2], (recording.sampling_rate, recording.num_samples)
            if there != stated:
                return (
                    f"{source.source} has {there[1]} samples at {there[0]} Hz, "
                    f"its manifest says {stated[1]} at {stated[0]} Hz"
                )
    return " ".join(str(error).split())[:200] or type(error).__name__


def features_key(source: str, cuts: Iterable[Cut], config: FeatureConfig) -> str:
    """Name of the cache of these cuts' features: it changes with the cuts, their audio and the settings."""
    settings = {**asdict(config), "storage": "", "cmvn": ""}
    del settings["kind"]  # filter banks alone are stored
    digest = hashlib.sha256(json.dumps([source, settings]).encode())
    versions: dict[str, str] = {}
    for cut in cuts:
        digest.update(f"{cut.id} {cut.start} {cut.duration} {cut.recording_id}\n".encode())
        for source_file in cut.recording.sources:
            if source_file.source not in versions:
                versions[source_file.source] = _version(Path(source_file.source))
                digest.update(versions[source_file.source].encode())
    return digest.hexdigest()[:16]


def _version(path: Path) -> str:
    """Changes when the file does: one corpus may be made again under the names of another."""
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing\n"
    return f"{path} {status.st_size} {status.st_mtime_ns}\n"


def store_features(
    cuts: CutSet, folder: Path, config: FeatureConfig, progress: Progress | None = None
) -> tuple[CutSet, list[Rejected]]:
    """Make the features of every cut once; what an earlier, broken-off call made is kept.

    Of two processes that make the same, one waits.

    Returns:
        The cuts with their features, and those that have none with the reason.

    Raises:
        UserError: the disk is full, or nothing is left.
    """
    manifest, rejected_path = folder / "cuts.jsonl", folder / "rejected.jsonl"
    done = folder / "done"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / "lock"):
            if not done.exists():
                bad = _make_features(cuts, folder, manifest, config, progress)
                lines = [json.dumps([each.id, each.reason]) + "\n" for each in bad]
                write_whole(rejected_path, "".join(lines))
                done.touch()
    except OSError as error:  # of a full disk the manifest's writer may tell only when it is closed
        raise UserError(
            f"features cannot be written ({error})", where=folder, remedy="Free space, run again"
        ) from None
    rejected = [Rejected(*json.loads(line)) for line in rejected_path.read_text().splitlines()]
    kept = CutSet.from_file(manifest).to_eager() if manifest.stat().st_size else CutSet([])
    if len(kept) == 0:
        reasons = "; ".join(sorted({each.reason for each in rejected})[:3])
        raise UserError(f"no utterance has usable audio ({reasons})", where=folder)
    return kept, rejected


def _make_features(
    cuts: CutSet, folder: Path, manifest: Path, config: FeatureConfig, progress: Progress | None
) -> list[Rejected]:
    """Make and store what the manifest lacks; the cuts that have none."""
    features, rejected, total = CutFeatures(config), [], len(cuts)
    _drop_cut_line(manifest)
    with (
        CutSet.open_writer(manifest, overwrite=False) as writer,
        NumpyFilesWriter(folder / "fbank") as storage,
    ):
        for index, cut in enumerate(cuts):
            if cut.id not in writer:
                try:
                    writer.write(_with_features(cut, features.made(cut), storage, config), flush=True)
                except BadUtterance as error:
                    rejected.append(Rejected(cut.id, error.what))
            if progress is not None:
                progress(index + 1, total)
    return rejected


def _with_features(cut: Cut, features: Tensor, storage: NumpyFilesWriter, config: FeatureConfig) -> Cut:
    from lhotse import Features

    array = features.numpy()
    cut.features = Features(
        type="fbank",
        num_frames=array.shape[0],
        num_features=array.shape[1],
        frame_shift=FRAME_SHIFT,
        sampling_rate=config.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=storage.name,
        storage_path=str(storage.storage_path),
        storage_key=storage.write(hashlib.sha1(cut.id.encode()).hexdigest(), array),  # an id may hold a slash
        recording_id=cut.recording_id,
        channels=0,
    )
    return cut


def _drop_cut_line(manifest: Path) -> None:
    """Take away what a killed process left of its last line."""
    if manifest.exists() and not (content := manifest.read_bytes()).endswith(b"\n"):
        os.truncate(manifest, content.rfind(b"\n") + 1)
