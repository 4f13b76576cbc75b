"""What the command line prints with: texts of others are shown as they are, never as markup or terminal commands."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from retort.common.errors import printable


class PlainConsole(Console):
    """A console to which every string is text: no markup, no emoji codes, no highlighting, no control characters.

    Styles are given beside a string. Cells and titles of tables are strings as well.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Every string comes through here on its way to the screen."""
        return super().render_str(printable(text, keep="\n\t"), **settings)


class PlainColumn(ProgressColumn):
    """A column of a progress bar that is text.

    Args:
        template: in which `task` stands for the :class:`rich.progress.Task`, such as `{task.description}`.
    """

    def __init__(self, template: str) -> None:
        super().__init__()
        self.template = template

    def render(self, task: Task) -> Text:
        """The text for one task."""
        return Text(printable(self.template.format(task=task)), no_wrap=True)


def prepare_streams() -> None:
    """Let every text be printed, whatever the terminal's encoding, and nothing be written to a stream that is closed.

    What stdout or stderr cannot encode becomes an escape. A standard stream that was closed before the start is opened
    on the null device, for else the first file that is opened would take its place.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_unicode(stream: Any) -> bool:
    """Whether a text stream takes every character."""
    return str(getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")
