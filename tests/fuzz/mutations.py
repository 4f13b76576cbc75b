"""Changes of bytes and of fields, drawn from a generator: the same seed makes the same file."""

from __future__ import annotations

import copy
import random
from typing import Any

INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**9, -(10**9), 2**63, 0.0, -1.5, 1e-9, 1e300, float("nan"), float("inf"), "", "a",
    "../../x", "\x00", "ä" * 300, [], [None], {}, {"a": 1}, [[]], "1e9",
)  # fmt: skip


def mutated_bytes(draw: random.Random, content: bytes) -> bytes:
    """One to four changes: bits, bytes, cuts, repeated and missing stretches."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if not data:
            return bytes(data)
        # Half of the changes are where headers are.
        place = draw.randrange(min(len(data), 64) if draw.random() < 0.5 else len(data))
        match draw.randrange(6):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                value = draw.choice(INTERESTING)
                data[place : place + len(value)] = value
            case 2:
                data[place] = draw.randrange(256)
            case 3:
                del data[place:]
            case 4:
                del data[place : place + draw.randint(1, 40)]
            case _:
                data[place:place] = data[place : place + draw.randint(1, 40)]
    return bytes(data)


def mutated_fields(draw: random.Random, content: Any) -> Any:
    """One to three fields of nested dicts and lists set to something else, taken away, or added."""
    changed = copy.deepcopy(content)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            return draw.choice(VALUES)
        owner, key = draw.choice(places)
        match draw.randrange(5):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[f"{key}x"] = owner.pop(key)
            case 2 if isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
                owner[key] = owner[key] * draw.choice((-1, 0, 2, 1000, 1e12, 0.001))
            case _:
                owner[key] = draw.choice(VALUES)
    return changed


def _places(content: Any) -> Any:
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in list(items):
        yield content, key
        yield from _places(value)
