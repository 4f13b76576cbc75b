"""What a benchmark has measured, beside its goal; `--json FILE` writes it for `benchmarks/all.py`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """A row of the page on speed.

    Attributes:
        what: what was measured.
        value: a ratio, a share or another number.
        goal: None if there is none.
        at_most: whether the goal is the largest value allowed, and not the smallest.
        detail: the conditions, or what the ratio is made of.
    """

    what: str
    value: float
    goal: float | None = None
    at_most: bool = True
    detail: str = ""

    @property
    def met(self) -> bool:
        return self.goal is None or (self.value <= self.goal if self.at_most else self.value >= self.goal)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that :func:`finish` reads."""
    parser.add_argument("--json", type=Path, help="write what was measured to this file")


def finish(rows: list[Measured], file: Path | None) -> int:
    """Write the rows to `file`, if there is one; the exit code, 1 if a goal is missed."""
    if file is not None:
        file.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    return int(not all(row.met for row in rows))
