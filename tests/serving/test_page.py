"""The page in a browser: a file, the microphone, the keyboard, the downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, Tab, browser

from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import to_srt

WORDS = "[...document.querySelectorAll('.word')].map(each => each.textContent)"
STATUS = "document.querySelector('#status').textContent"
KEEP_BLOBS = """
window.saved = [];
URL.createObjectURL = (make => blob => { saved.push(blob); return make(blob); })(URL.createObjectURL);
"""
DONE = f"{STATUS}.startsWith('Done')"


def test_the_page_needs_nothing_of_other_hosts(url: str) -> None:
    with urlopen(url) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy
    assert "<!doctype html>" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(
    url: str, spoken: Callable[..., np.ndarray], recogniser: Recogniser, tmp_path: Path
) -> None:
    wave = spoken(1, 5)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    soundfile.write(tmp_path / "garbage.txt.wav", np.zeros(0), 16000)
    quiet = 1e-3 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    spoken_twice = np.concatenate([quiet, spoken(2, 8), quiet, spoken(3, 8), quiet])
    soundfile.write(tmp_path / "microphone.wav", np.repeat(spoken_twice, 3), 48000)
    with browser(tmp_path / "profile", tmp_path / "microphone.wav") as tab:
        tab.open(url)
        _a_file(tab, tmp_path, recogniser, wave)
        _a_microphone(tab, len(spoken_twice) / 16000)
        for width in (320, 900):
            tab.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=700,
                deviceScaleFactor=1,
                mobile=False,
            )
            assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
        tab.choose_file("#file", tmp_path / "garbage.txt.wav")
        tab.wait("document.querySelector('#status').classList.contains('error')")
        assert tab.run(STATUS)
        assert [each for each in tab.errors if "400" not in each] == []  # the last request was refused


def _a_file(tab: Tab, folder: Path, recogniser: Recogniser, wave: np.ndarray) -> None:
    # Downloads are caught, because a headless browser has no folder for them.
    tab.run(KEEP_BLOBS)
    tab.choose_file("#file", folder / "a.wav")
    tab.wait(DONE)
    expected = recogniser.transcribe(folder / "a.wav")
    assert tab.run(WORDS) == [each.text for each in expected.words]
    shown = tab.run("[...document.querySelectorAll('.word')].map(each => each.title)")
    assert all(f"{round(each.confidence * 100)} %" in title for each, title in zip(expected.words, shown))
    tab.run("document.querySelector('#srt').click()")
    assert tab.run("saved.at(-1).text()") == to_srt(expected)
    tab.run("document.querySelector('.word').focus()")
    tab.press("ArrowRight")
    assert tab.run("document.activeElement === document.querySelectorAll('.word')[1]")
    tab.press("Enter")
    second = expected.words[1]
    tab.wait(f"document.querySelector('audio').currentTime > {second.start}")
    tab.wait("document.querySelector('audio').paused")
    assert tab.run("document.querySelector('audio').currentTime") < second.end + 1.0


def _a_microphone(tab: Tab, seconds: float) -> None:
    tab.run("document.querySelector('#mic').focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('#mic').getAttribute('aria-pressed') === 'true'")
    tab.wait("document.querySelectorAll('#text p').length >= 1", seconds + 60)
    tab.wait("document.querySelectorAll('.word').length > 0", seconds + 60)
    tab.run(f"new Promise(done => setTimeout(done, {1000 * seconds}))")
    tab.press("Enter")
    tab.wait(DONE)
    assert len(tab.run(WORDS)) >= 2
    tab.wait("document.querySelector('audio').duration > 2.0")
    tab.run("document.querySelector('.word').click()")
    tab.wait("document.querySelector('audio').currentTime > 0")
