"""Numbers of configurations: each field of a dataclass says which values it may have, and one function checks them all.

steps: int = number(1000, 1, 10**9)
peak_lr: float = number(3e-4, 0, 1e9, above=True)
betas: list[float] = numbers([0.9, 0.999], 0, 1, below=True, length=2)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from retort.common.errors import UserError

_KEY = "range"
MILLION = 10**6
BILLION = 10**9
"""The largest number of steps, frames and the like: more than anything needs, and far from where arithmetic ends."""
WIDEST = 2**16
"""The largest width of a layer."""
THREADS = 1024
"""The largest number of threads or processes: more than a machine has cores."""
SEEDS = 2**32 - 1
"""The largest seed that every generator of random numbers takes."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, with or without the ends; never NaN, never infinite.

    Attributes:
        length: how many numbers a list has; None for any number of them.
        whole: whether it is an integer.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    length: int | None = None
    whole: bool = False

    def holds(self, value: object) -> bool:
        """Whether it is such a number."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number = int(value) if isinstance(value, Integral) else float(value)
        if isinstance(number, float) and not math.isfinite(number):
            return False
        inside = self.low < number if self.above else self.low <= number
        return inside and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        low, high = _written(self.low), _written(self.high)
        kind = "a whole number " if self.whole else ""
        if self.above:
            return f"{kind}above {low}, {'below' if self.below else 'at most'} {high}"
        return f"{kind}from {low} to {'below ' * self.below}{high}"


def number(
    default: float | None, low: float, high: float, *, above: bool = False, below: bool = False
) -> Any:
    """A field for a number in a range; with `above` and `below` its ends are outside.

    A default of None is a field that may stay empty.
    """
    return field(default=default, metadata={_KEY: Range(low, high, above, below)})


def numbers(
    default: Sequence[float],
    low: float,
    high: float,
    *,
    above: bool = False,
    below: bool = False,
    length: int | None = None,
) -> Any:
    """A field for a list of numbers in a range."""
    return field(
        default_factory=lambda: list(default), metadata={_KEY: Range(low, high, above, below, length)}
    )


def of_each(default: Mapping[str, float], low: float, high: float, *, above: bool = False) -> Any:
    """A field for numbers in a range by their names."""
    return field(default_factory=lambda: dict(default), metadata={_KEY: Range(low, high, above)})


def range_of(config: type, name: str) -> Range | None:
    """What a field of a dataclass may be, if it says so."""
    return next((each.metadata.get(_KEY) for each in fields(config) if each.name == name), None)


def check_ranges(config: Any, where: str | Path = "", above: str = "") -> None:
    """Check every number of a dataclass that has a range, and those of the dataclasses in it.

    Args:
        config: an instance.
        where: the file that it was read from.
        above: the key that it stands under.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    for key, value, limits in _numbers(config, above):
        if limits.length is not None and isinstance(value, list) and len(value) != limits.length:
            remedy = f"Give {limits.length} numbers"
            raise UserError(f"{key} is {_shown(value)}", where=where, remedy=remedy)
        values = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if not all(limits.holds(each) for each in values):
            each = " each" if isinstance(value, (list, dict)) else ""
            raise UserError(f"{key} is {_shown(value)}", where=where, remedy=f"Choose{each} {limits}")


def _numbers(config: Any, above: str) -> Iterator[tuple[str, Any, Range]]:
    """Keys, values and ranges, those of parts too: `training.steps`, `distill[0].weight`, `teachers.NAME.topk`."""
    for each in fields(config):
        key, value = f"{above}.{each.name}".lstrip("."), getattr(config, each.name)
        limits = each.metadata.get(_KEY)
        if limits is not None:
            if value is not None or each.default is not None:
                yield key, value, replace(limits, whole="int" in str(each.type))
        elif is_dataclass(value):
            yield from _numbers(value, key)
        elif isinstance(value, list):
            for index, part in enumerate(value):
                if is_dataclass(part):
                    yield from _numbers(part, f"{key}[{index}]")
        elif isinstance(value, dict):
            for name, part in value.items():
                if is_dataclass(part):
                    yield from _numbers(part, f"{key}.{name}")


def _shown(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**7 else f"{value:g}"
