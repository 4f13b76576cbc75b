"""Progress in a log file, where no bar is drawn."""

from __future__ import annotations

import io

import pytest

from retort.common import progress
from retort.common.console import PlainConsole


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 3), (3600.0, 0)])
def test_a_log_file_has_a_line_for_a_stage_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
    written = io.StringIO()
    with progress.stage_progress(PlainConsole(file=written)) as report:
        for done in (1000, 2000, 3000):
            report("teacher plm", done, 3000)
    assert written.getvalue().count(" of 3,000") == lines


def test_a_terminal_has_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    written = io.StringIO()
    with progress.stage_progress(PlainConsole(file=written, force_terminal=True)) as report:
        report("teacher plm", 1, 3000)
    assert " of 3,000" not in written.getvalue()
