from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from retort.audio.channels import choose_channels
from retort.audio.files import check_wave, open_audio, read_audio, resample
from retort.common.errors import BadUtterance

RATE = 16000


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (level * draw.standard_normal(int(seconds * RATE))).clip(-1, 1).astype(np.float32)


class TestBlocks:
    def test_they_are_the_whole_file_and_bounded(self, tmp_path: Path) -> None:
        wave = noise(40)
        soundfile.write(tmp_path / "a.wav", wave, 22050, subtype="FLOAT")
        blocks = list(open_audio(tmp_path / "a.wav").blocks())
        assert len(blocks) > 2
        assert max(map(len, blocks)) <= 1 << 18
        np.testing.assert_array_equal(np.concatenate(blocks), resample(wave, 22050, 16000))
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), resample(wave, 22050, 16000))

    def test_they_can_be_read_again(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", noise(1), RATE)
        reader = open_audio(tmp_path / "a.wav")
        np.testing.assert_array_equal(reader.read(), reader.read())
        assert (reader.sampling_rate, reader.channels, reader.samples) == (RATE, 1, RATE)

    def test_a_range_of_samples(self, tmp_path: Path) -> None:
        wave = noise(1)
        soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
        reader = open_audio(tmp_path / "a.wav", None, first=1000, last=3000)
        np.testing.assert_array_equal(reader.read(), wave[1000:3000])
        assert (reader.sampling_rate, reader.samples) == (8000, 2000)

    def test_a_pipe(self, tmp_path: Path) -> None:

        wave = noise(1)
        soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
        os.mkfifo(tmp_path / "pipe")
        content = (tmp_path / "a.wav").read_bytes()
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
        writer.start()
        np.testing.assert_array_equal(read_audio(tmp_path / "pipe"), wave)
        writer.join()


class TestChannels:
    def test_each_by_its_number(self, tmp_path: Path) -> None:
        left, right = noise(1, 1), noise(1, 2)
        soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=0), left)
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=1), right)
        np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)

    @pytest.mark.parametrize("channel", [1, -1])
    def test_one_that_is_not_there(self, tmp_path: Path, channel: int) -> None:
        soundfile.write(tmp_path / "a.wav", noise(1), RATE)
        with pytest.raises(BadUtterance, match=f"1 channel, there is no channel {channel}"):
            open_audio(tmp_path / "a.wav", channel=channel)

    @pytest.mark.parametrize(
        ("gains", "offset", "chosen"),
        [
            ([1.0, -0.9], 0.0, [0]),
            ([0.5, -1.0], 0.0, [1]),
            ([1.0, -0.8], 0.3, [0]),
            ([1.0, 1.0], 0.0, [0, 1]),
            ([1.0, 0.0], 0.0, [0, 1]),
            ([1.0, -0.9, 0.5, -0.4], 0.0, [0, 2]),
        ],
    )
    def test_a_channel_in_opposite_phase_is_left_out(
        self, gains: list[float], offset: float, chosen: list[int]
    ) -> None:
        wave, hiss = noise(1), noise(1, 7, 0.003)
        channels = np.stack([gain * wave + offset + hiss for gain in gains], 1)
        assert choose_channels([channels[:7000], channels[7000:]], len(gains)) == chosen

    def test_two_speakers_are_both_kept(self) -> None:
        assert choose_channels([np.stack([noise(1, 1), noise(1, 2)], 1)], 2) == [0, 1]

    def test_opposite_phase_in_a_file(self, tmp_path: Path) -> None:
        wave = noise(1)
        soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], 1), RATE, subtype="FLOAT")
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), wave)


class TestLimits:
    @pytest.mark.parametrize("rate", [384_001, 10_000_019, 2**31 - 1])
    def test_a_header_with_an_absurd_rate(self, tmp_path: Path, rate: int) -> None:
        soundfile.write(tmp_path / "a.wav", noise(1), RATE)
        content = bytearray((tmp_path / "a.wav").read_bytes())
        content[24:28] = rate.to_bytes(4, "little")
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(BadUtterance, match=str(rate)):
            open_audio(tmp_path / "a.wav")

    def test_a_longer_file_than_allowed(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.flac", np.zeros(RATE * 10), RATE)
        with pytest.raises(BadUtterance, match="the limit is"):
            open_audio(tmp_path / "a.flac", maximum_hours=9 / 3600)
        assert len(read_audio(tmp_path / "a.flac", maximum_hours=10 / 3600)) == 10 * RATE


@pytest.mark.parametrize("value", [1e4, -1e9, 1e30, -3e38])
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_a_huge_sample(tmp_path: Path, value: float, rate: int) -> None:
    wave = noise(1)
    wave[5000] = value
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    with pytest.raises(BadUtterance, match="full scale"):
        check_wave(read_audio(tmp_path / "a.wav"), "a")


@pytest.mark.parametrize("scale", [2.0**15, 2.0**31])
def test_integers_stored_as_floats_are_speech(scale: float) -> None:
    check_wave(noise(0.5) * np.float32(scale), "a")
