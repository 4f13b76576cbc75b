from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from retort.common.errors import BadUtterance
from retort.decoding.channels import channel_nbest, turns
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import TimedText, Transcript, to_srt, to_vtt

RATE = 16000


def spoken(*words: tuple[str, float, float]) -> Transcript:
    timed = [TimedText(text, start, end, 1.0) for text, start, end in words]
    return Transcript(" ".join(word.text for word in timed), timed, timed)


CALL = {
    0: spoken(("good", 0.5, 0.8), ("day", 0.8, 1.2), ("how", 4.0, 4.3)),
    1: spoken(("hello", 1.5, 2.0), ("<you>", 4.1, 4.5)),
    2: spoken(),
}


def syllables(seed: int, seconds: float = 2.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    voice = np.sin(2 * np.pi * np.cumsum(200 + 80 * np.sin(time * (4 + seed))) / RATE)
    gate = np.sin(2 * np.pi * 3 * time + seed) > -0.5
    return (0.3 * gate * voice + 0.003 * draw.standard_normal(len(time))).astype(np.float32)


def test_turns_are_interleaved_by_their_start() -> None:
    assert [(turn.start, turn.channel, turn.text) for turn in turns(CALL, " ")] == [
        (0.5, 0, "good day"),
        (1.5, 1, "hello"),
        (4.0, 0, "how"),
        (4.1, 1, "<you>"),
    ]


def test_subtitles_name_the_channel() -> None:
    blocks = to_srt(CALL).split("\n\n")
    assert [block.split("\n")[2] for block in blocks] == [
        "[channel 0] good day",
        "[channel 1] hello",
        "[channel 0] how",
        "[channel 1] <you>",
    ]
    assert "<v channel 1>&lt;you&gt;" in to_vtt(CALL)


def test_each_channel_has_the_transcript_of_its_own_file(recogniser: Recogniser, tmp_path: Path) -> None:
    channels = [syllables(0), syllables(5)]
    soundfile.write(tmp_path / "call.wav", np.stack(channels, 1), RATE, subtype="FLOAT")
    for number, wave in enumerate(channels):
        soundfile.write(tmp_path / f"{number}.wav", wave, RATE, subtype="FLOAT")
    alone = {number: recogniser.transcribe(tmp_path / f"{number}.wav") for number in (0, 1)}
    assert recogniser.transcribe_channels(tmp_path / "call.wav") == alone
    assert recogniser.transcribe(tmp_path / "call.wav", channel=1) == alone[1]
    with pytest.raises(BadUtterance, match="no channel 2"):
        recogniser.transcribe(tmp_path / "call.wav", channel=2)


def test_a_silent_channel_has_no_text(
    recogniser: Recogniser, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wave = syllables(0)
    soundfile.write(tmp_path / "call.wav", np.stack([wave, 0 * wave], 1), RATE, subtype="FLOAT")
    with caplog.at_level(logging.WARNING):
        found = channel_nbest(recogniser, str(tmp_path / "call.wav"), 30.0)
    assert found[1][0].transcript.text == ""
    assert found[0][0].transcript.text
    assert "channel 1" in caplog.text
    soundfile.write(tmp_path / "call.wav", np.zeros((RATE, 2)), RATE)
    with pytest.raises(BadUtterance, match="silence"):
        recogniser.transcribe_channels(tmp_path / "call.wav")


def test_json_of_a_channel_is_plain(recogniser: Recogniser, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", syllables(0), RATE)
    (transcript,) = recogniser.transcribe_channels(tmp_path / "a.wav").values()
    assert set(json.loads(transcript.to_json())) >= {"text", "words", "tokens"}


@pytest.mark.parametrize("value", [1e30, 1e5, np.nan])
def test_a_damaged_sample_is_one_line(recogniser: Recogniser, tmp_path: Path, value: float) -> None:
    wave = syllables(0)
    wave[9000] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(BadUtterance, match=r"a\.wav: .*samples"):
        recogniser.transcribe(tmp_path / "a.wav")
