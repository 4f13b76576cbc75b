"""Console of the command line: strings are printed literally, never as markup or terminal commands."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from retort.common.errors import printable


class PlainConsole(Console):
    """A console that prints strings literally: no markup, no emoji codes, no highlighting, no control characters.

    Styles are separate arguments. This includes cells and titles of tables.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Called for every string that is printed."""
        return super().render_str(printable(text, keep="\n\t"), **settings)


class PlainColumn(ProgressColumn):
    """A text column of a progress bar.

    Args:
        template: format string with `task`, the :class:`rich.progress.Task`, such as `{task.description}`.
    """

    def __init__(self, template: str) -> None:
        super().__init__()
        self.template = template

    def render(self, task: Task) -> Text:
        """The text for one task."""
        return Text(printable(self.template.format(task=task)), no_wrap=True)


def prepare_streams() -> None:
    """Make all text printable in the terminal's encoding, and replace closed standard streams.

    Characters that stdout or stderr cannot encode are escaped. A standard stream that was closed before the start is
    redirected to the null device, because otherwise the first opened file would replace it.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # it gets the lowest free descriptor
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_unicode(stream: Any) -> bool:
    """Whether a text stream can encode every character."""
    return str(getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")
