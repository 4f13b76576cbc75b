"""CTM files, the exchange format for times: `utterance channel start duration symbol`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from retort.alignment.alignment import Alignment, Timed
from retort.common.errors import UserError
from retort.common.files import write_whole


def read_ctm(path: str | Path, frame_shift: float = 0.01) -> dict[str, list[Timed]]:
    """Words or phones of each utterance, sorted by time, in frames.

    Start and end are rounded separately, so that adjacent units stay adjacent. Further fields are ignored;
    lines that begin with `;;` are comments.

    Args:
        frame_shift: seconds.

    Raises:
        UserError: the file cannot be read, is empty, or has an invalid line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    except UnicodeDecodeError:
        raise UserError("it is not UTF-8 text", where=path) from None
    found: dict[str, list[Timed]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            name, _, start, duration, symbol, *_ = line.split()
            first, last = float(start), float(start) + float(duration)
            if not 0 <= first <= last < math.inf:
                raise ValueError
        except ValueError:
            raise UserError(
                f"line {number} is not `utterance channel start duration symbol`, times in seconds",
                where=path,
            ) from None
        begin = round(first / frame_shift)
        found.setdefault(name, []).append(Timed(symbol, begin, round(last / frame_shift) - begin))
    if not found:
        raise UserError("it contains no lines", where=path)
    return {name: sorted(timed, key=lambda each: each.start) for name, timed in found.items()}


def write_ctm(
    path: str | Path,
    alignments: Iterable[Alignment],
    unit: Literal["phone", "word"],
    frame_shift: float = 0.01,
) -> None:
    """Write the words, or the phones with silences, of alignments; the channel is 1.

    Raises:
        UserError: it cannot be written.
    """
    lines = [
        f"{each.id} 1 {timed.start * frame_shift:.3f} {timed.frames * frame_shift:.3f} {timed.symbol}\n"
        for each in alignments
        for timed in (each.words if unit == "word" else each.phones)
    ]
    write_whole(Path(path), "".join(lines))
