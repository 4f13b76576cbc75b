"""What all verbs share: where they write, what they ask for, how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False)
EXPERIMENTS = Path("exp")

STOPPED = 130
"""Exit code of a command that was stopped from the keyboard."""
TERMINATED = 143
"""Exit code of a command that SIGTERM stopped."""

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a packaged recipe, or a YAML file.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="a.b=c", help="Settings over the recipe's.")]


def tell(text: str, style: str | None = None) -> None:
    """One line on the screen, never broken: paths are there to be copied."""
    console.print(text, style=style, markup=False, soft_wrap=True)
