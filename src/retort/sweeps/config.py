"""What a sweep may say, and the runs that it asks for."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from retort.config import Recipe
from retort.errors import UserError
from retort.recipe import check_choices, load_recipe, read_recipe

_NAME = re.compile(r"\w[\w.+=,-]*(/\w[\w.+=,-]*)*")


@dataclass
class SystemConfig:
    """A row of the table, or one for each combination of `grid`."""

    recipe: str = MISSING
    """Name or path."""
    set: list[str] = field(default_factory=list)
    """Settings `a.b=c` over the recipe and over `common`."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Keys of the recipe and the values that each takes; every combination is a row of its own."""


@dataclass
class SweepConfig:
    """A sweep: every key is a field here."""

    name: str = MISSING
    """Its experiments are `exp/NAME/SYSTEM-SEED`."""
    systems: dict[str, SystemConfig] = field(default_factory=dict)
    """By the names of their rows; with a grid a row is called `SYSTEM key=value`."""
    against: str = ""
    """The row that the others are compared with; empty for the first."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    common: list[str] = field(default_factory=list)
    """Settings `a.b=c` over every recipe, but not over warm starts."""
    score_on: str = "test"
    """`test`, or `validation` while something is still being chosen: test data then stay unheard."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """What `--slurm` asks of the cluster, as submitit calls it: `timeout_min`, `slurm_partition`, `gpus_per_node`."""


@dataclass(frozen=True)
class Run:
    """One training: a system with one seed.

    Attributes:
        recipe: checked, with all settings laid over it.
        arguments: of `retort train`, which make it.
    """

    recipe: Recipe
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A system with its runs, one a seed, and where it stands in a grid over one number."""

    name: str
    runs: tuple[Run, ...]
    system: str
    point: tuple[str, float] | None = None
    """Key and value."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep; `sources` are the data that every run is scored on."""

    name: str
    against: str
    rows: tuple[Row, ...]
    sources: tuple[str, ...]
    slurm: dict[str, Any]

    @property
    def runs(self) -> list[Run]:
        """A seed of all systems before the next, so that a sweep that is stopped early can compare them."""
        return [run for runs in zip(*(row.runs for row in self.rows)) for run in runs]


def load_sweep(sweep: str, overrides: Sequence[str] = ()) -> Sweep:
    """Open a sweep by name or path, lay `a.b=c` over it, and load the recipe of every run.

    Raises:
        UserError: no such sweep, an unknown key or wrong value, in the sweep or in a recipe of it.
    """
    config = read_recipe(SweepConfig, sweep, overrides)
    check_choices(config, {"score_on": ("test", "validation")}, sweep)
    if not _NAME.fullmatch(config.name):
        raise UserError(
            f"name is '{config.name}'",
            where=sweep,
            remedy="Use letters, digits and . + = , - _ between slashes",
        )
    if not config.systems:
        raise UserError("it has no systems", where=sweep, remedy="Name one or more, each with its recipe")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds is {config.seeds}", where=sweep, remedy="Name different seeds")
    rows = tuple(row for name in config.systems for row in _rows(name, config, sweep))
    against = config.against or rows[0].name
    if against not in (names := [row.name for row in rows]):
        raise UserError(f"against is '{against}'", where=sweep, remedy=f"Choose one of {', '.join(names)}")
    experiments = [run.recipe.name for row in rows for run in row.runs]
    if twice := {name for name in experiments if experiments.count(name) > 1}:
        raise UserError(f"two of its rows would be {min(twice)}", where=sweep, remedy="Rename one")
    sources = rows[0].runs[0].recipe.data.test
    if other := next((row for row in rows if row.runs[0].recipe.data.test != sources), None):
        raise UserError(
            f"{other.name} is scored on other data than {rows[0].name}",
            where=sweep,
            remedy="Give all systems the same data.test (or data.validation)",
        )
    if not sources:
        raise UserError(f"nothing to score on: data.{config.score_on} is empty", where=sweep)
    return Sweep(config.name, against, rows, tuple(sources), config.slurm)


def _rows(name: str, config: SweepConfig, where: str) -> Iterator[Row]:
    system = config.systems[name]
    if empty := [key for key, values in system.grid.items() if not values]:
        raise UserError(f"systems.{name}.grid.{empty[0]} has no values", where=where)
    for values in itertools.product(*system.grid.values()):
        point = dict(zip(system.grid, values))
        row = " ".join([name, *(f"{key}={value}" for key, value in point.items())])
        settings = [*config.common, *system.set]
        settings += [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in point.items()]
        runs = tuple(_run(row, seed, settings, system.recipe, config) for seed in config.seeds)
        yield Row(row, runs, name, _number(point))


def _run(row: str, seed: int, settings: Sequence[str], recipe: str, config: SweepConfig) -> Run:
    folder = re.sub(r"[^\w.+=,-]+", "-", row)
    final = [*settings, f"seed={seed}", f"name={config.name}/{folder}-{seed}"]
    if config.score_on == "validation":
        final.append(f"data.test={json.dumps(load_recipe(recipe, settings).data.validation)}")
    return Run(load_recipe(recipe, final), (recipe, *final))


def _number(point: dict[str, Any]) -> tuple[str, float] | None:
    """The key and value of a grid over one number."""
    if len(point) != 1:
        return None
    ((key, value),) = point.items()
    return (key, float(value)) if type(value) in (int, float) else None
