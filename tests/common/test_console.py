from __future__ import annotations

import io

from rich.progress import Progress
from rich.table import Table

from retort.common.console import PlainColumn, PlainConsole
from retort.common.errors import UserError, printable, system_error

HOSTILE = "[/x] [red]a[/red] :smile: \x1b[2J\x9b1m \udcff \u202eabc"
SHOWN = "[/x] [red]a[/red] :smile: \\x1b[2J\\x9b1m \\xff \\u202eabc"


def printed(*things: object) -> str:
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=200)
    for each in things:
        console.print(each)
    return stream.getvalue()


def test_names_are_shown_as_they_are() -> None:
    table = Table("name", HOSTILE, title=HOSTILE)
    table.add_row("x", HOSTILE)
    assert printed(HOSTILE) == SHOWN + "\n"
    assert printed(table).count(SHOWN) == 3
    assert "\x1b[2J" not in printed(table)


def test_bars_show_names_as_they_are() -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=200, force_terminal=True)
    with Progress(PlainColumn("{task.description}"), console=console) as progress:
        progress.add_task(HOSTILE, total=1)
    assert SHOWN in stream.getvalue()
    assert "\x1b[2J\\x9b" not in stream.getvalue()


def test_a_line_stays_a_line() -> None:
    assert printable("a\nb\tc\r") == "a\\nb\\tc\\r"
    assert printable("a\nb", keep="\n") == "a\nb"
    assert printable("naïve 音频 क्‍ष 👍") == "naïve 音频 क्‍ष 👍"


def test_what_the_system_refuses_is_one_line() -> None:
    assert str(UserError("x")) == "x"
    assert system_error(PermissionError(13, "Permission denied", "out/a")).startswith(
        "out/a: Permission denied. "
    )
    assert "disk is full" in system_error(OSError(28, "No space left on device"))
