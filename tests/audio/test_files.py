from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from retort.audio.files import audio_info, check_wave, read_audio
from retort.common.errors import BadUtterance, UserError

SECONDS = 0.5


def tone(rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(SECONDS * rate)) / rate)).astype(np.float32)


def peak_hertz(samples: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_any_rate_becomes_the_rate_asked_for(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate), rate, subtype="FLOAT")
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - SECONDS * 16000) <= 2
    assert peak_hertz(samples, 16000) == pytest.approx(440, abs=2.1)
    middle = samples[2000:6000]
    expected = tone(16000)[2000:6000]
    assert np.abs(middle - expected).max() < 0.01  # in phase and at its level


def test_another_rate_can_be_asked_for(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    assert len(read_audio(tmp_path / "a.wav", sampling_rate=8000)) == SECONDS * 8000


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    wave = np.stack([tone(16000, level=0.1 * (each + 1)) for each in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), wave.mean(axis=1), atol=1e-6)
    assert audio_info(tmp_path / "a.wav") == (16000, len(wave), channels)


@pytest.mark.parametrize(
    ("name", "options"), [("a.flac", {}), ("a.ogg", {}), ("a.opus", {"format": "OGG", "subtype": "OPUS"})]
)
def test_compressed_files(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    soundfile.write(tmp_path / name, tone(16000), 16000, **options)
    samples = read_audio(tmp_path / name)
    assert peak_hertz(samples, 16000) == pytest.approx(440, abs=2.1)
    assert audio_info(tmp_path / name).samples == len(samples)


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("this is no audio\n" * 100)


def write_header_only(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), 16000, format="WAV")


def write_half_a_header(path: Path) -> None:
    soundfile.write(path, tone(16000), 16000)
    path.write_bytes(path.read_bytes()[:20])


def write_folder(path: Path) -> None:
    path.mkdir()


def write_slow(path: Path) -> None:
    soundfile.write(path, np.ones(100, np.float32), 100)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "no such file"),
        (write_nothing, "empty"),
        (write_text, "cannot be read as audio"),
        (write_header_only, "no samples"),
        (write_half_a_header, "cannot be read as audio"),
        (write_folder, "a folder"),
        (write_slow, "100 Hz"),
    ],
)
@pytest.mark.parametrize("read", [read_audio, audio_info])
def test_what_cannot_be_read_is_reported_in_one_line(tmp_path: Path, write, reason: str, read) -> None:
    path = tmp_path / "a.wav"
    write(path)
    with pytest.raises(BadUtterance, match=reason) as caught:
        read(path)
    line = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros(16000, np.float32), "silence"),
        (np.full(16000, 0.3, np.float32), "silence"),
        (tone(16000, level=5e-5), "silence"),
        (np.where(np.arange(100) == 7, np.nan, tone(16000)[:100]), "1 of 100"),
        (np.where(np.arange(100) < 2, np.inf, tone(16000)[:100]), "2 of 100"),
    ],
)
def test_a_wave_without_speech_is_refused(samples: np.ndarray, reason: str) -> None:
    with pytest.raises(BadUtterance, match=reason) as caught:
        check_wave(samples, "utterance 7")
    assert caught.value.where == "utterance 7"


@pytest.mark.parametrize("level", [1e-3, 0.5, 30.0])
def test_a_quiet_or_loud_wave_passes(level: float) -> None:
    check_wave(tone(16000, level=level), "utterance 7")


def test_nan_in_a_file_survives_to_the_check(tmp_path: Path) -> None:
    wave = tone(8000)
    wave[100] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    with pytest.raises(BadUtterance, match="NaN"):
        check_wave(read_audio(tmp_path / "a.wav"), "a.wav")
