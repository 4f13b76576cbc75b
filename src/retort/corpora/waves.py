"""Waves of cuts, read by the same reader as in `retort transcribe`; lhotse applies further transforms."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import MonoCut, Recording
from lhotse.audio import (
    AudioSource,
    get_audio_duration_mismatch_tolerance,
    set_audio_duration_mismatch_tolerance,
)
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.cut import Cut, MixedCut
from lhotse.utils import compute_num_samples, fastcopy

from retort.audio.channels import choose_channels
from retort.audio.files import AudioInfo, audio_info, check_wave, open_audio, open_source
from retort.common.errors import BadUtterance
from retort.corpora.cuts import TOLERANCE, is_mix


def load_samples(cut: Cut, sampling_rate: int) -> np.ndarray:
    """The cut's wave as `(N,)` float32, of its channel or the mean of all channels, at `sampling_rate`.

    A cut of a file is read as `retort transcribe` reads files, in blocks, so that both give the same samples.

    Raises:
        BadUtterance: the audio cannot be read, is empty, silent, not finite, or does not match the manifest.
    """
    try:
        if isinstance(cut, MonoCut) and not cut.recording.transforms and len(cut.recording.sources) == 1:
            samples = _of_file(cut, sampling_rate)
        else:
            samples = _of_lhotse(cut, sampling_rate)
    except BadUtterance as error:
        what = error.what if error.where == cut.id else f"{error.where}: {error.what}"
        raise BadUtterance(f"its audio cannot be read ({what})", where=cut.id) from None
    check_wave(samples, cut.id, sampling_rate)
    return samples


def _of_file(cut: MonoCut, sampling_rate: int) -> np.ndarray:
    recording, source = cut.recording, cut.recording.sources[0]
    rate = recording.sampling_rate
    first = compute_num_samples(cut.start, rate)
    end = first + compute_num_samples(cut.duration, rate)
    path, content = str(source.source), None
    if source.type == "memory":  # read from a shard
        path, content = recording.id, source.source
    info = audio_info(path, content)
    missing = end - info.samples
    if info.sampling_rate != rate or missing > TOLERANCE * rate or info.samples < first:
        raise _other_than_stated(path, recording, info)
    # No limit of the length, because the manifest states it.
    reader = open_audio(
        path,
        sampling_rate,
        "mix" if is_mix(cut) else _channel_of_file(cut, info.channels),
        first=first,
        last=None if missing >= 0 else end,
        maximum_hours=float("inf"),
        content=content,
    )
    return reader.read()


def _channel_of_file(cut: MonoCut, there: int) -> int:
    """Channel of its file that a cut uses; a manifest lists channels in the order of the file."""
    source = cut.recording.sources[0]
    named = len(source.channels) == there
    if len(source.channels) > there or cut.channel not in (source.channels if named else range(there)):
        raise BadUtterance(
            f"its audio has {there} channels, but its manifest {source.channels} and the cut {cut.channel}",
            where=cut.id,
        )
    return source.channels.index(cut.channel) if named else cut.channel


def _of_lhotse(cut: Cut, sampling_rate: int) -> np.ndarray:
    """The wave of a cut with noise, another speed, or a file for each channel."""
    original = cut
    lhotse_log = logging.getLogger()
    level = lhotse_log.level
    lhotse_log.setLevel(logging.CRITICAL)  # lhotse logs many lines before it raises
    _set_up_lhotse()
    try:
        if cut.sampling_rate != sampling_rate:
            cut = cut.resample(sampling_rate)
        if isinstance(cut, MixedCut):
            tracks = [
                fastcopy(track, cut=_in_memory(track.cut)) if isinstance(track.cut, MonoCut) else track
                for track in cut.tracks
            ]
            audio = np.asarray(fastcopy(cut, tracks=tracks).load_audio(), dtype=np.float32)
            return audio.reshape(-1, audio.shape[-1]).mean(axis=0)
        return _of_one(cut)
    except Exception as error:  # lhotse raises many exceptions; one bad file must not end a long job
        raise BadUtterance(_reason(original, error), where=original.id) from None
    finally:
        lhotse_log.setLevel(level)


def _of_one(cut: Cut) -> np.ndarray:
    """Samples `(N,)` of a cut that is not mixed with others."""
    if not is_mix(cut):
        audio = np.asarray(
            cut.recording.load_audio(channels=cut.channel, offset=cut.start, duration=cut.duration),
            dtype=np.float32,
        )
        # More channels than in the manifest.
        return audio[0] if len(audio) == 1 else audio[cut.channel]
    audio = np.asarray(cut.recording.load_audio(offset=cut.start, duration=cut.duration), dtype=np.float32)
    return audio[choose_channels([audio.T], len(audio))].mean(axis=0)


def _in_memory(cut: MonoCut) -> MonoCut:
    """The same cut with its samples instead of a file: lhotse would use one channel instead of all."""
    samples = _of_one(cut)
    content = io.BytesIO()
    soundfile.write(content, samples, cut.sampling_rate, format="WAV", subtype="FLOAT")
    recording = Recording(
        id=cut.recording.id,
        sources=[AudioSource(type="memory", channels=[0], source=content.getvalue())],
        sampling_rate=cut.sampling_rate,
        num_samples=len(samples),
        duration=len(samples) / cut.sampling_rate,
    )
    return fastcopy(cut, start=0.0, channel=0, recording=recording)


class FileBackend(LibsndfileBackend):
    """lhotse backend with our reader: no shell, no other libraries, the same formats in all commands."""

    def read_audio(
        self,
        path_or_fd: Any,
        offset: float = 0.0,
        duration: float | None = None,
        force_opus_sampling_rate: int | None = None,
    ) -> tuple[np.ndarray, int]:
        """`(channels, N)` float32 and the sampling rate of the file."""
        if not isinstance(path_or_fd, str | Path):
            source = open_source("audio in memory", path_or_fd.read())
        else:
            source = open_source(path_or_fd)
        rate = source.info.sampling_rate
        first = compute_num_samples(offset, rate) if offset else 0
        last = None if duration is None else first + compute_num_samples(duration, rate)
        blocks = list(source.blocks(first, last)) or [np.zeros((0, source.info.channels), np.float32)]
        return np.ascontiguousarray(np.concatenate(blocks).T), rate

    def handles_special_case(self, path_or_fd: Any) -> bool:
        """Always true."""
        return True

    def is_applicable(self, path_or_fd: Any) -> bool:
        """Always true."""
        return True


def _set_up_lhotse() -> None:
    """Use our reader, and disable mirroring of up to half a second for files shorter than in the manifest."""
    if not isinstance(get_current_audio_backend(), FileBackend):
        set_current_audio_backend(FileBackend())
    if get_audio_duration_mismatch_tolerance() != TOLERANCE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about values below its default
            set_audio_duration_mismatch_tolerance(TOLERANCE)


def _reason(cut: Cut, error: BaseException) -> str:
    """The reason of an error in terms of the files, in place of lhotse's message."""
    tracks = [track.cut for track in getattr(cut, "tracks", [])] or [cut]
    for recording in (each.recording for each in tracks if each.has_recording):
        for source in recording.sources:
            if source.type != "file":
                continue
            try:
                info = audio_info(str(source.source))
            except BadUtterance as found:
                return f"{found.where}: {found.what}"
            stated = recording.sampling_rate, recording.num_samples
            if not recording.transforms and info[:2] != stated:
                return _other_than_stated(str(source.source), recording, info).what
    cause: BaseException | None = error
    while cause is not None:  # lhotse wraps exceptions of our reader
        if isinstance(cause, BadUtterance) and cause.where:
            return f"{cause.where}: {cause.what}"
        cause = cause.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__


def _other_than_stated(path: str, recording: Recording, info: AudioInfo) -> BadUtterance:
    return BadUtterance(
        f"{path} has {info.samples} samples at {info.sampling_rate} Hz, "
        f"its manifest has {recording.num_samples} at {recording.sampling_rate} Hz",
    )
