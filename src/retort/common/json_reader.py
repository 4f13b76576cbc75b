"""Reading of JSON from untrusted files; every error is a `ValueError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Maximum nesting of lists and objects; files of this package have fewer than ten levels."""


def parse_json(text: str | bytes, deepest: int = DEEPEST) -> Any:
    """The value of a JSON text; bytes are UTF-8 with or without a byte-order mark.

    Raises:
        ValueError: the text is not JSON, or nested deeper than `deepest` levels, which could exceed the recursion
            limit.
    """
    too_deep = f"lists and objects are nested deeper than {deepest} levels"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    if isinstance(text, bytes):
        opened = text.count(b"[") + text.count(b"{")
    else:
        opened = text.count("[") + text.count("{")
    if opened > deepest and _deeper(value, deepest):
        raise ValueError(too_deep)
    return value


def read_json(path: str | Path, deepest: int = DEEPEST) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: as :func:`parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(Path(path).read_bytes(), deepest)


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested on more than this number of levels."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            child
            for each in level
            if isinstance(each, (list, dict))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True
