from __future__ import annotations

from pathlib import Path

import pytest

from retort.common.errors import print_error


def test_one_process_of_a_launch_speaks_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, line in enumerate(("the reason", "what came of it")):
        (tmp_path / "attempt_0" / str(rank)).mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / str(rank) / "error.json"))
        print_error(line)
    assert capsys.readouterr().err == "retort: the reason\n"
    (tmp_path / "attempt_1" / "1").mkdir(parents=True)  # torchrun has started them again
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_1" / "1" / "error.json"))
    print_error("another reason")
    assert capsys.readouterr().err == "retort: another reason\n"


@pytest.mark.parametrize("own", [None, "/nowhere/0/error.json"])
def test_without_a_launch_every_line_is_printed(
    own: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if own:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", own)
    print_error("one")
    print_error("two")
    assert capsys.readouterr().err == "retort: one\nretort: two\n"
