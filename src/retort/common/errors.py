"""Errors for the user, one line each: what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path


class UserError(Exception):
    """An error that the user can correct; the command line prints it and exits with code 2.

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
    """An unusable utterance; long jobs skip, count and list it, single-file commands stop."""


_REMEDIES = {
    errno.ENOSPC: "Free space and run again",
    errno.EDQUOT: "Free space and run again",
    errno.EACCES: "Change its permissions, or write elsewhere",
    errno.EPERM: "Change its permissions, or write elsewhere",
    errno.EROFS: "Write elsewhere",
    errno.ENOTDIR: "A file exists in the place of a folder: rename it, or write elsewhere",
    errno.EEXIST: "A file exists in the place of a folder: rename it, or write elsewhere",
    errno.EISDIR: "A folder exists in the place of a file: rename it, or write elsewhere",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}


def system_error(error: OSError) -> str:
    """An OSError as one line: reason, file and remedy."""
    what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error) or "refused")
    names = [str(name) for name in (error.filename, error.filename2) if name not in (None, "")]
    remedy = _REMEDIES.get(error.errno or 0, "")
    return str(UserError(what, where=" and ".join(names), remedy=remedy))


_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Escape an external text (a name, a transcript, a reason) for printing on a terminal.

    Control characters, including those of terminal commands, marks of writing direction and bytes of
    file names that are not characters are written as escapes, such as `\\x1b`.

    Args:
        text: text of any origin.
        keep: control characters that are not escaped, such as a line end.
    """
    return _NOT_PRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogate escape of an undecodable byte in a file name
        code -= 0xDC00
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(
        character, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    )


def print_error(line: str) -> None:
    """Print on stderr why the command ends; under `torchrun` only the first failing process of a machine prints.

    The other processes end soon after it, and their messages would hide the reason.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")  # ATTEMPT/RANK/error.json, in a folder of this launch
    if own:
        try:
            (Path(own).parents[1] / "retort.said").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # a duplicate message is better than none
    print_to_stderr(line)


def print_to_stderr(line: str) -> None:
    """Print one line on stderr, if it exists."""
    if sys.stderr is not None:
        print(f"retort: {printable(line)}", file=sys.stderr)
