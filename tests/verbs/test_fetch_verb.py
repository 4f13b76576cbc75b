from __future__ import annotations

from pathlib import Path

import pytest

from answers import Retort, is_one_line


def test_the_list(retort: Retort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    answer = retort("fetch")
    assert answer.code == 0
    for word in ("whisper-base", "kokoro-82m", "Apache-2.0", "133 MB", str(tmp_path / "cache")):
        assert word in answer.out
    assert "yes" not in answer.out
    assert not (tmp_path / "cache").exists()


def test_names_are_checked_before_anything_is_fetched(
    retort: Retort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    is_one_line(retort("fetch", "whisper-base", "whisper-bass"), "whisper-bass", "whisper-base")
    assert not (tmp_path / "cache").exists()


def test_no_room_for_a_cache(retort: Retort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    is_one_line(retort("fetch", "minilm"), "cache", "cannot be written")
