"""Releases that go to the hub and come back, with a local stand-in of its API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hub_server import Hub, hub_server
from huggingface_hub import ModelCard

import retort
from retort.common.errors import UserError
from retort.pretrained.released import find_release, hub_name
from retort.release.hub import push
from retort.release.release import Released

NAME = "user/tones"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.chdir(tmp_path)
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_there_and_back(
    hub: Hub,
    released: Released,
    say: Callable[..., np.ndarray],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    soundfile.write(tmp_path / "a.wav", say("abba cad ef", 1), 16000)
    expected = retort.load(released.folder).transcribe(tmp_path / "a.wav")
    pinned = push(released.folder, NAME)
    (commit,) = hub.commits[NAME]
    assert pinned == f"{NAME}@{commit}"
    files = hub.commits[NAME][commit]
    stored = {
        path.relative_to(released.folder).as_posix() for path in released.folder.rglob("*") if path.is_file()
    }
    assert files.keys() == stored
    (row, *_) = ModelCard(files["README.md"].decode()).data.eval_results
    assert (row.task_type, row.metric_type) == ("automatic-speech-recognition", "wer")

    with caplog.at_level(logging.WARNING):
        assert retort.load(pinned).transcribe(tmp_path / "a.wav") == expected
        assert caplog.records == []
        assert retort.load(NAME).transcribe(tmp_path / "a.wav") == expected
    assert any(pinned in record.getMessage() for record in caplog.records)

    hub.requests.clear()
    assert retort.load(pinned).transcribe(tmp_path / "a.wav") == expected
    assert hub.requests == [], "a pinned release needs no network"


def test_a_pinned_revision_is_not_the_newest(hub: Hub, released: Released) -> None:
    pinned = push(released.folder, NAME)
    hub.commit(NAME, {"README.md": b"newer", "evil.py": b"print()"})
    assert (find_release(pinned) / "README.md").read_bytes() != b"newer"
    newest = find_release(NAME)
    assert (newest / "README.md").read_bytes() == b"newer"
    assert not (newest / "evil.py").exists()
    assert push(released.folder, NAME) != pinned
    assert len(hub.commits[NAME]) == 3


def test_damage_is_seen(hub: Hub, released: Released) -> None:
    push(released.folder, NAME)
    weights = (released.folder / "model.safetensors").read_bytes()
    hub.commit(NAME, {"model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])})
    with pytest.raises(UserError):
        retort.load(NAME)


def test_mistakes(hub: Hub, released: Released, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pinned = push(released.folder, NAME)
    hub.commit("user/other", {"README.md": b"", "pytorch_model.bin": b""})
    for name in ("user/nobody", f"{NAME}@nowhere", f"{NAME}@{'0' * 40}", "user/other"):
        with pytest.raises(UserError) as caught:
            retort.load(name)
        assert caught.value.where == name
    for name in ("tones", "a/b/c", "../x", "user/na me"):
        with pytest.raises(UserError):
            push(released.folder, name)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError):
        push(released.folder, NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError):
        retort.load(pinned)


def test_folders_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in ("models/english", "exp/aishell1", "a", "./a/b", "/a/b", "a/b/c", "~/a"):
        assert hub_name(path) is None
    assert hub_name("user/name") == ("user/name", None)
    assert hub_name("user/name@v1.0") == ("user/name", "v1.0")
