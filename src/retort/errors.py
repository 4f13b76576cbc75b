"""The user's mistakes, each told in one line: what is wrong, where, and what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend; the command line prints it and exits with code 2.

    Args:
        what: what is wrong, without a full stop.
        where: the file, utterance, key or line concerned.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str | Path = "", remedy: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.remedy = remedy
        line = f"{self.where}: {what}" if self.where else what
        super().__init__(f"{line}. {remedy}" if remedy else line)


class BadUtterance(UserError):
    """One utterance that cannot be used; long jobs skip, count and list it, single-file commands stop."""


def complain(line: str) -> None:
    """Say on stderr why this command ends; under `torchrun` the first process of a machine speaks for all.

    What ends one process soon ends the others, whose own words would hide the reason.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")  # ATTEMPT/RANK/error.json, in a folder of this launch
    if own:
        try:
            (Path(own).parents[1] / "retort.said").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # better twice than never
    print(f"retort: {line}", file=sys.stderr)
