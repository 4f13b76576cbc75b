"""Ranges of numbers in configurations: fields of dataclasses declare them, :func:`check_ranges` checks them.

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
"""The largest number of steps, frames and the like; larger numbers could overflow."""
WIDEST = 2**16
"""The largest width of a layer."""
THREADS = 1024
"""The largest number of threads or processes."""
SEEDS = 2**32 - 1
"""The largest seed that all generators of random numbers accept."""


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    Attributes:
        above: whether `low` is excluded.
        below: whether `high` is excluded.
        length: required length of a list; None for any length.
        whole: whether the numbers must be integers.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    length: int | None = None
    whole: bool = False

    def holds(self, value: object) -> bool:
        """Whether `value` is a number in this range."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number = int(value) if isinstance(value, Integral) else float(value)
        if isinstance(number, float) and not math.isfinite(number):
            return False
        inside = self.low < number if self.above else self.low <= number
        return inside and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        low, high = _written(self.low), _written(self.high)
        kind = "an integer " if self.whole else ""
        if self.above:
            return f"{kind}above {low}, {'below' if self.below else 'at most'} {high}"
        return f"{kind}from {low} to {'below ' * self.below}{high}"


def number(
    default: float | None, low: float, high: float, *, above: bool = False, below: bool = False
) -> Any:
    """A field for a number in a range; `above` excludes `low`, `below` excludes `high`.

    If the default is None, None is permitted.
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
    """A field for a mapping from names to numbers in a range."""
    return field(default_factory=lambda: dict(default), metadata={_KEY: Range(low, high, above)})


def range_of(config: type, name: str) -> Range | None:
    """The range of a field of a dataclass, if it has one."""
    return next((each.metadata.get(_KEY) for each in fields(config) if each.name == name), None)


def check_ranges(config: Any, where: str | Path = "", above: str = "") -> None:
    """Check all numbers of a dataclass that have a range, and those of nested dataclasses.

    Args:
        config: an instance of a dataclass.
        where: the file that it was read from, for the message.
        above: the key of `config`, if it is part of another configuration.

    Raises:
        UserError: names the key, its value and the range.
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
    """Keys, values and ranges, including nested ones: `training.steps`, `distill[0].weight`, `teachers.NAME.topk`."""
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
