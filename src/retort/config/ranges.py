"""Values that configurations permit: fields of dataclasses declare them, :func:`check_ranges` checks them.

merge: str = choice("concat", "average")
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
_CHOICES = "choices"
_MISSING = "???"
"""`omegaconf.MISSING`; the command line imports this file for `--help`, which should not import omegaconf."""
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


class UnknownChoice(UserError):
    """The value of a key is not one of its choices."""


def choice(default: str, *others: str) -> Any:
    """A field for one of several words; without a default if it is `omegaconf.MISSING`."""
    return field(default=default, metadata={_CHOICES: tuple(each for each in (default, *others) if each != _MISSING)})


def choose(key: str, value: object, choices: Sequence[str], where: str | Path = "") -> None:
    """Check that a value is one of several words.

    Raises:
        UnknownChoice: names the key, the value and the words.
    """
    if value not in choices:
        raise UnknownChoice(f"{key} is '{value}'", where=where, remedy=f"Choose one of {', '.join(choices)}")


def choices_of(config: type, name: str) -> tuple[str, ...]:
    """The choices of a field of a dataclass; empty if it has none."""
    return next((each.metadata.get(_CHOICES, ()) for each in fields(config) if each.name == name), ())


def range_of(config: type, name: str) -> Range | None:
    """The range of a field of a dataclass, if it has one."""
    return next((each.metadata.get(_KEY) for each in fields(config) if each.name == name), None)


def check_ranges(config: Any, where: str | Path = "", above: str = "") -> None:
    """Check the values of a dataclass, and those of nested dataclasses.

    These are numbers that have a range, words that have choices, and what the dataclass checks itself in a method
    `validate(key)`, where `key` is its own key.

    Args:
        config: an instance of a dataclass.
        where: the file that it was read from, for the message.
        above: the key of `config`, if it is part of another configuration.

    Raises:
        UserError: names the key, its value and what is permitted.
    """
    for part, key in _parts(config, above):
        _check_choices(part, key, where)
    for key, value, limits in _numbers(config, above):
        if limits.length is not None and isinstance(value, list) and len(value) != limits.length:
            remedy = f"Give {limits.length} numbers"
            raise UserError(f"{key} is {_shown(value)}", where=where, remedy=remedy)
        values = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if not all(limits.holds(each) for each in values):
            each = " each" if isinstance(value, (list, dict)) else ""
            raise UserError(f"{key} is {_shown(value)}", where=where, remedy=f"Choose{each} {limits}")
    for part, key in _parts(config, above):
        if callable(validate := getattr(part, "validate", None)):
            try:
                validate(key)
            except UserError as error:
                raise UserError(error.what, where=where, remedy=error.remedy) from None


def _check_choices(config: Any, above: str, where: str | Path) -> None:
    for each in fields(config):
        allowed, value = each.metadata.get(_CHOICES), getattr(config, each.name)
        if allowed:
            choose(f"{above}.{each.name}".lstrip("."), value, allowed, where)


def _parts(config: Any, above: str) -> Iterator[tuple[Any, str]]:
    """A dataclass and all dataclasses in it, with their keys."""
    yield config, above
    for each in fields(config):
        key, value = f"{above}.{each.name}".lstrip("."), getattr(config, each.name)
        inner: Mapping[str, Any] = {"": value}
        if isinstance(value, list):
            inner = {f"[{index}]": part for index, part in enumerate(value)}
        elif isinstance(value, dict):
            inner = {f".{name}": part for name, part in value.items()}
        for name, part in inner.items():
            if is_dataclass(part):
                yield from _parts(part, f"{key}{name}")


def _numbers(config: Any, above: str) -> Iterator[tuple[str, Any, Range]]:
    """Keys, values and ranges, including nested ones: `training.steps`, `distill[0].weight`, `teachers.NAME.topk`."""
    for part, key in _parts(config, above):
        for each in fields(part):
            limits, value = each.metadata.get(_KEY), getattr(part, each.name)
            if limits is not None and (value is not None or each.default is not None):
                name = f"{key}.{each.name}".lstrip(".")
                yield name, value, replace(limits, whole="int" in str(each.type))


def _shown(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**7 else f"{value:g}"
