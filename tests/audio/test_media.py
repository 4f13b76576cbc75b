"""Formats that PyAV reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retort.audio.files import audio_info, open_audio, read_audio
from retort.common.errors import BadUtterance

RATE = 16000
FORMATS = {
    "m4a": ("ipod", "aac", {}),
    "mp4": ("mp4", "aac", {"movflags": "faststart"}),
    "webm": ("webm", "libopus", {}),
    "mkv": ("matroska", "aac", {}),
    "aac": ("adts", "aac", {}),
    "amr": ("amr", "libopencore_amrnb", {}),
}
EARLY = ["mp4", "webm", "mkv", "aac", "amr"]
"""Formats that can be read without their end."""


def tone(seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.fixture
def av() -> Any:
    return pytest.importorskip("av", reason="the extra `media` is not installed")


def write(av: Any, path: Path, samples: np.ndarray, channels: int = 1) -> bytes:
    container_format, codec, options = FORMATS[path.suffix[1:]]
    rate = {"libopus": 48000, "libopencore_amrnb": 8000}.get(codec, RATE)
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(path), "w", format=container_format, options=options) as container:
        try:
            stream = container.add_stream(codec, rate=rate)
        except (ValueError, av.FFmpegError):
            pytest.skip(f"this PyAV has no encoder {codec}")
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, channels)[None], format="flt", layout=layout)
        frame.sample_rate = RATE
        convert = av.AudioResampler(
            stream.codec_context.format, layout, rate, stream.codec_context.frame_size or 1024
        )
        for each in [*convert.resample(frame), *convert.resample(None)]:
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_read(tmp_path: Path, av: Any, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    write(av, path, tone(2))
    reader = open_audio(path)
    samples = reader.read()
    assert not reader.warning
    assert len(samples) == pytest.approx(2 * RATE, abs=2500)
    assert len(open_audio(path, None).read()) == audio_info(path).samples
    middle = samples[8000:24000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440
    part = open_audio(path, None, first=5000, last=9000).read()
    np.testing.assert_array_equal(part, open_audio(path, None).read()[5000:9000])


@pytest.mark.parametrize("kind", ["m4a", "webm"])
def test_channels(tmp_path: Path, av: Any, kind: str) -> None:
    write(av, tmp_path / f"a.{kind}", tone(1), channels=2)
    assert audio_info(tmp_path / f"a.{kind}").channels == 2
    assert np.abs(read_audio(tmp_path / f"a.{kind}", channel=1)).max() > 0.3


@pytest.mark.parametrize("kind", EARLY)
@pytest.mark.parametrize("share", [0.4, 0.95])
def test_one_that_ends_early(tmp_path: Path, av: Any, kind: str, share: float) -> None:
    path = tmp_path / f"a.{kind}"
    content = write(av, path, tone(4))
    path.write_bytes(content[: int(share * len(content))])
    reader = open_audio(path)
    samples = reader.read()
    assert 0.2 * RATE < len(samples) < 4.0 * RATE
    assert f"ends early, at {reader.info.samples / reader.info.sampling_rate:.2f} s" in reader.warning


def test_one_without_its_index_is_refused(tmp_path: Path, av: Any) -> None:
    content = write(av, tmp_path / "a.m4a", tone(2))
    (tmp_path / "a.m4a").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadUtterance, match="cannot be read as audio"):
        audio_info(tmp_path / "a.m4a")


@pytest.mark.parametrize("kind", FORMATS)
def test_files_in_a_row_are_read_or_refused(tmp_path: Path, av: Any, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    content = write(av, path, tone(1))
    alone = audio_info(path).samples
    path.write_bytes(content + content)
    if kind == "aac":
        assert audio_info(path).samples == 2 * alone
    else:
        with pytest.raises(BadUtterance, match="several concatenated files"):
            audio_info(path)


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom", b"\x1aE\xdf\xa3" * 9, b"#!AMR\n"]
)
def test_damaged_files_are_one_line(tmp_path: Path, av: Any, head: bytes) -> None:
    (tmp_path / "a").write_bytes(head)
    with pytest.raises(BadUtterance) as caught:
        read_audio(tmp_path / "a")
    assert str(caught.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)


def test_lists_of_other_files_are_not_followed(tmp_path: Path, av: Any) -> None:
    (tmp_path / "other.wav").write_bytes(b"")
    for content in ("ffconcat version 1.0\nfile other.wav\n", "#EXTM3U\n#EXTINF:1,\nother.wav\n"):
        (tmp_path / "a.m4a").write_text(content)
        with pytest.raises(BadUtterance, match="cannot be read as audio"):
            read_audio(tmp_path / "a.m4a")


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom")
    with pytest.raises(BadUtterance, match=r"retort-asr\[media\]"):
        read_audio(tmp_path / "a.m4a")
