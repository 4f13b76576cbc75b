"""Files that hold more or less than their header says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from retort.audio.files import audio_info, open_audio, read_audio
from retort.common.errors import BadUtterance

RATE = 16000
FORMATS: dict[str, dict[str, Any]] = {
    "mp3": {"format": "MP3"},
    "vbr": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.3},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC"},
    "wav": {"format": "WAV"},
    "wavex": {"format": "WAVEX", "subtype": "PCM_24"},
    "adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "nist": {"format": "NIST"},
}
LOSSY = {"mp3", "vbr", "vorbis", "opus"}


def wave(seconds: float, hertz: float = 300.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    hiss = 0.02 * np.random.default_rng(int(hertz)).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * hertz * time) + hiss).astype(np.float32)


def written(path: Path, samples: np.ndarray, kind: str) -> bytes:
    with soundfile.SoundFile(path, "w", RATE, 1, **FORMATS[kind]) as file:
        for start in range(0, len(samples), RATE):  # libsndfile's Vorbis takes no long blocks
            file.write(samples[start : start + RATE])
    return path.read_bytes()


def streamed_flac(content: bytes) -> bytes:
    """STREAMINFO without the number of samples and the checksum, as a pipe has it."""
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(20) + content[42:]


def without_xing(content: bytes) -> bytes:
    """The first frame, which states the length, taken away."""
    start = content.index(b"\xff", 3)
    while content[start : start + 2] != content[:2]:
        start = content.index(b"\xff", start + 1)
    assert b"Xing" in content[:start] or b"Info" in content[:start]
    return content[start:]


@pytest.mark.parametrize("kind", FORMATS)
class TestEveryFormat:
    def test_one_file(self, tmp_path: Path, kind: str) -> None:
        written(tmp_path / "a", wave(2), kind)
        reader = open_audio(tmp_path / "a", None)
        samples = reader.read()
        assert len(samples) == reader.info.samples == pytest.approx(2 * RATE, abs=600)
        assert not reader.warning
        middle = reader.info.samples // 2
        parts = [open_audio(tmp_path / "a", None, last=middle).read()]
        parts.append(open_audio(tmp_path / "a", None, first=middle).read())
        np.testing.assert_array_equal(np.concatenate(parts), samples)

    def test_files_in_a_row(self, tmp_path: Path, kind: str) -> None:
        first, second = written(tmp_path / "a", wave(2), kind), written(tmp_path / "b", wave(1, 700), kind)
        (tmp_path / "c").write_bytes(first + second + first)
        alone = [read_audio(tmp_path / name) for name in "aba"]
        np.testing.assert_array_equal(read_audio(tmp_path / "c"), np.concatenate(alone))
        assert audio_info(tmp_path / "c").samples == sum(map(len, alone))
        assert not open_audio(tmp_path / "c").warning
        inner = open_audio(tmp_path / "c", first=len(alone[0]) - 1000, last=len(alone[0]) + 1000).read()
        np.testing.assert_array_equal(inner[:1000], alone[0][-1000:])
        np.testing.assert_array_equal(inner[1000:], alone[1][:1000])

    @pytest.mark.parametrize("share", [0.45, 0.7, 0.98])
    def test_one_that_ends_early(
        self, tmp_path: Path, kind: str, share: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = written(tmp_path / "a", wave(6), kind)
        whole = read_audio(tmp_path / "a")
        assert not caplog.records
        (tmp_path / "b").write_bytes(content[: int(share * len(content))])
        with caplog.at_level(logging.WARNING):
            samples = read_audio(tmp_path / "b")
        assert len(samples) == audio_info(tmp_path / "b").samples
        assert 0.2 * share * len(whole) < len(samples) < len(whole)
        alike = len(samples) - 1200  # the last frames of a lossy format depend on what follows
        np.testing.assert_allclose(samples[:alike], whole[:alike], atol=0.02 if kind in LOSSY else 0)
        (record,) = caplog.records
        assert f"ends early, at {len(samples) / RATE:.2f} s" in record.getMessage()
        assert str(tmp_path / "b") in record.getMessage()

    def test_one_that_ends_early_before_another(self, tmp_path: Path, kind: str) -> None:
        first, second = written(tmp_path / "a", wave(6), kind), written(tmp_path / "b", wave(1, 700), kind)
        alone = read_audio(tmp_path / "b")
        (tmp_path / "c").write_bytes(first[: len(first) // 2] + second)
        reader = open_audio(tmp_path / "c")
        samples = reader.read()
        assert reader.warning  # the second is read, or the bytes that are not are stated
        if kind in LOSSY or kind == "flac":
            np.testing.assert_array_equal(samples[-len(alone) :], alone)

    @pytest.mark.parametrize("tail", [b"TAG" + b"x" * 125, bytes(700)])
    def test_what_follows_and_is_no_audio(self, tmp_path: Path, kind: str, tail: bytes) -> None:
        content = written(tmp_path / "a", wave(2), kind)
        (tmp_path / "b").write_bytes(content + tail)
        whole = read_audio(tmp_path / "a")
        reader = open_audio(tmp_path / "b")
        np.testing.assert_array_equal(reader.read()[: len(whole)], whole)
        assert not reader.warning


@pytest.mark.parametrize("kind", ["mp3", "vbr"])
@pytest.mark.parametrize("front", [b"", b"ID3\x03\0\0\0\0\x02\x00" + bytes(256)])
def test_mp3_without_its_length(tmp_path: Path, kind: str, front: bytes) -> None:
    sound = np.concatenate([0.01 * wave(3), wave(3)])  # of very different bit rates
    content = written(tmp_path / "a", sound, kind)
    (tmp_path / "b").write_bytes(front + without_xing(content))
    samples = read_audio(tmp_path / "b")
    assert len(samples) == audio_info(tmp_path / "b").samples
    assert len(sound) <= len(samples) < len(sound) + 3 * 1152
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    assert loud[0] > 2.9 * RATE
    assert loud[-1] > len(sound) - 500


def test_mp3_and_its_stream_in_a_row(tmp_path: Path) -> None:
    content = written(tmp_path / "a", wave(2), "mp3")
    (tmp_path / "b").write_bytes(content + without_xing(content))
    assert len(read_audio(tmp_path / "b")) == pytest.approx(4 * RATE, abs=3000)


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_flac_of_a_pipe(tmp_path: Path, seconds: float) -> None:
    content = written(tmp_path / "a", wave(seconds), "flac")
    (tmp_path / "b").write_bytes(streamed_flac(content))
    np.testing.assert_array_equal(read_audio(tmp_path / "b"), read_audio(tmp_path / "a"))
    assert audio_info(tmp_path / "b").samples == seconds * RATE


@pytest.mark.parametrize("stated", [1, 40_000, 2**36 - 1])
def test_flac_whose_header_lies(tmp_path: Path, stated: int) -> None:
    content = bytearray(written(tmp_path / "a", wave(3), "flac"))
    content[21] = content[21] & 0xF0 | stated >> 32
    content[22:26] = (stated & 0xFFFFFFFF).to_bytes(4, "big")
    (tmp_path / "b").write_bytes(content)
    np.testing.assert_array_equal(read_audio(tmp_path / "b"), read_audio(tmp_path / "a"))


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_of_a_pipe(tmp_path: Path, size: int) -> None:
    content = bytearray(written(tmp_path / "a", wave(1), "wav"))
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    (tmp_path / "b").write_bytes(content)
    reader = open_audio(tmp_path / "b")
    np.testing.assert_array_equal(reader.read(), read_audio(tmp_path / "a"))
    assert not reader.warning


def test_streams_of_different_kinds_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a", wave(1), 16000, format="FLAC")
    soundfile.write(tmp_path / "b", wave(1), 8000, format="FLAC")
    (tmp_path / "c").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with pytest.raises(BadUtterance, match="16000 Hz, 1 channels"):
        audio_info(tmp_path / "c")


def test_a_long_file_is_read_from_its_middle(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 125 * 8000).astype(np.float32)
    soundfile.write(tmp_path / "a.mp3", sound, 8000)
    whole = read_audio(tmp_path / "a.mp3", 8000)
    part = open_audio(tmp_path / "a.mp3", 8000, first=122 * 8000, last=124 * 8000).read()
    np.testing.assert_allclose(part, whole[122 * 8000 : 124 * 8000], atol=1e-6)
