"""Configuration of sweeps, and the runs that they define."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING, OmegaConf

from retort.common.errors import UserError
from retort.config.loading import load_recipe, read_recipe, recipe_to_dict
from retort.config.ranges import SEEDS, choice, numbers
from retort.config.schema import Recipe
from retort.decoding.options import GREEDY, DecodingOptions

_NAME = re.compile(r"\w[\w.+=,-]*(/\w[\w.+=,-]*)*")


@dataclass
class SystemConfig:
    """A row of the table, or one for each combination of `grid`."""

    recipe: str = MISSING
    """Name or path, and overlays: `speechocean762/cif +encoder/zipformer`."""
    set: list[str] = field(default_factory=list)
    """Settings `a.b=c` and overlays `+NAME` over the recipe and over `common`."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Keys of the recipe and their values; every combination is a row. A grid over one number is also plotted as a
    curve; a system with the same recipe and settings but no grid is a point of the curve with its own value."""


@dataclass
class SweepConfig:
    """A sweep: every key is a field here."""

    name: str = MISSING
    """Its experiments are `exp/NAME/SYSTEM-SEED`, its tables are in `exp/NAME`."""
    runs: str = ""
    """Folder of the experiments under `exp/`, instead of `name`. Sweeps with the same folder share their common runs,
    each of which is trained once."""
    systems: dict[str, SystemConfig] = field(default_factory=dict)
    """Systems by the names of their rows; rows of a grid are called `SYSTEM key=value`."""
    against: str = ""
    """The row that the others are compared with; empty for the first."""
    seeds: list[int] = numbers([1, 2, 3], 0, SEEDS)
    common: list[str] = field(default_factory=list)
    """Settings `a.b=c` and overlays `+NAME` over every recipe; values are not applied to the stages before it."""
    score_on: str = choice("test", "validation")
    """`test`, or `validation` during development, so that test data are not used."""
    decode: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Decoding configurations by name, each with its own table: options of `retort evaluate` (`beam: 10`). Empty for
    greedy decoding. With `systems: [NAME, ...]` a configuration applies only to these systems."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """Parameters of submitit for `--slurm`, such as `timeout_min`, `slurm_partition`, `gpus_per_node`."""


@dataclass(frozen=True)
class Run:
    """One training: a system with one seed.

    Attributes:
        recipe: checked recipe with all settings applied.
        arguments: arguments of `retort train` for it.
    """

    recipe: Recipe
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A system with its runs, one for each seed.

    Attributes:
        curves: for each grid over one number that the row is a point of, by name: key and value.
    """

    name: str
    runs: tuple[Run, ...]
    curves: Mapping[str, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """Data that runs are scored on, and how they are decoded; `name` is empty if there is one configuration.

    Attributes:
        rows: names of the rows that it applies to; empty for all.
    """

    source: str
    name: str = ""
    options: DecodingOptions = GREEDY
    rows: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Title of its table."""
        return f"{self.source}, {self.name}" if self.name else self.source


@dataclass(frozen=True)
class Sweep:
    """A checked sweep; each of `views` becomes a table."""

    name: str
    against: str
    rows: tuple[Row, ...]
    views: tuple[View, ...]
    slurm: dict[str, Any]

    @property
    def runs(self) -> list[Run]:
        """All runs, ordered by seed, so that a sweep that is stopped early can still compare the systems."""
        return [run for runs in zip(*(row.runs for row in self.rows)) for run in runs]

    def rows_in(self, view: View) -> tuple[Row, ...]:
        """The rows of its table."""
        return tuple(row for row in self.rows if not view.rows or row.name in view.rows)

    def views_of(self, run: Run) -> list[View]:
        """The views in which the run is scored."""
        return [view for view in self.views if any(run in row.runs for row in self.rows_in(view))]

    def against_in(self, view: View) -> str:
        """The row that the others of its table are compared with: `against`, or the first if that is not in the table."""
        names = [row.name for row in self.rows_in(view)]
        return self.against if self.against in names else names[0]

    def scoring(self, run: Run, view: View) -> str:
        """Name of the scoring of a run in a view that is not part of the training."""
        return f"{run.recipe.name}-{view.name}-{plain(view.source)}"


def load_sweep(sweep: str, overrides: Sequence[str] = ()) -> Sweep:
    """Load a sweep by name or path, apply overrides `a.b=c`, and load the recipe of every run.

    Raises:
        UserError: the sweep does not exist, or it or one of its recipes has an unknown key or an invalid value.
    """
    config = read_recipe(SweepConfig, sweep, overrides)
    for key, name in (("name", config.name), ("runs", config.runs or config.name)):
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{key} is '{name}'",
                where=sweep,
                remedy="Use letters, digits and . + = , - _ between slashes",
            )
    if not config.systems:
        raise UserError("the sweep has no systems", where=sweep, remedy="Add systems, each with its recipe")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds is {config.seeds}", where=sweep, remedy="Use different seeds")
    systems = {name: list(_rows(name, config, sweep)) for name in config.systems}
    rows = _with_curves([row for each in systems.values() for row in each], config)
    against = config.against or rows[0].name
    if against not in (names := [row.name for row in rows]):
        raise UserError(f"against is '{against}'", where=sweep, remedy=f"Choose one of {', '.join(names)}")
    experiments = [run.recipe.name for row in rows for run in row.runs]
    if twice := {name for name in experiments if experiments.count(name) > 1}:
        raise UserError(f"two rows have the same name {min(twice)}", where=sweep, remedy="Rename one")
    sources = rows[0].runs[0].recipe.data.test
    if other := next((row for row in rows if row.runs[0].recipe.data.test != sources), None):
        raise UserError(
            f"{other.name} is scored on other data than {rows[0].name}",
            where=sweep,
            remedy="Give all systems the same data.test (or data.validation)",
        )
    if not sources:
        raise UserError(f"there is nothing to score on: data.{config.score_on} is empty", where=sweep)
    places = {system: [row.name for row in each if row.name in names] for system, each in systems.items()}
    return Sweep(config.name, against, rows, _views(sources, places, config, sweep), config.slurm)


def plain(name: str) -> str:
    """The name with characters that are allowed in file names."""
    return re.sub(r"[^\w.+=,-]+", "-", name)


def _views(
    sources: Sequence[str], places: Mapping[str, Sequence[str]], config: SweepConfig, where: str
) -> tuple[View, ...]:
    """The views, ordered by decoding configuration, then by data.

    Args:
        places: rows of the systems, by name.
    """
    configurations: list[tuple[str, DecodingOptions, tuple[str, ...]]] = [] if config.decode else [("", GREEDY, ())]
    for name, settings in config.decode.items():
        options = {key: value for key, value in settings.items() if key != "systems"}
        rows = _limited(name, settings["systems"], places, where) if "systems" in settings else ()
        configurations.append((name, _options(name, options, where), rows))
    return tuple(View(source, name, options, rows) for name, options, rows in configurations for source in sources)


def _limited(name: str, systems: object, places: Mapping[str, Sequence[str]], where: str) -> tuple[str, ...]:
    """The rows of the systems that a decoding configuration is limited to."""
    if not isinstance(systems, list) or not systems or not places.keys() >= set(map(str, systems)):
        raise UserError(
            f"decode.{name}.systems is {systems}", where=where, remedy=f"Choose from {', '.join(places)}"
        )
    return tuple(row for system in systems for row in places[str(system)])


def _options(name: str, settings: Mapping[str, Any], where: str) -> DecodingOptions:
    if plain(name) != name:
        raise UserError(
            f"decode has the name '{name}'", where=where, remedy="Use letters, digits and . + = , - _"
        )
    try:
        return DecodingOptions(**settings)
    except TypeError:
        known = [*(each.name for each in fields(DecodingOptions)), "systems"]
        wrong = next((key for key in settings if key not in known), "")
        what = f"unknown key 'decode.{name}.{wrong}'" if wrong else f"decode.{name} has an invalid value"
        raise UserError(what, where=where, remedy=f"Keys are {', '.join(known)}") from None
    except UserError as error:
        raise UserError(f"decode.{name}: {error.what}", where=where, remedy=error.remedy) from None


def _rows(name: str, config: SweepConfig, where: str) -> Iterator[Row]:
    system = config.systems[name]
    if empty := [key for key, values in system.grid.items() if not values]:
        raise UserError(f"systems.{name}.grid.{empty[0]} has no values", where=where)
    for values in itertools.product(*system.grid.values()):
        point = dict(zip(system.grid, values))
        row = " ".join([name, *(f"{key}={value}" for key, value in point.items())])
        named = [] if system.grid else [f"system={json.dumps(name, ensure_ascii=False)}"]
        settings = [*named, *config.common, *system.set]
        settings += [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in point.items()]
        key = _number(system)
        runs = tuple(_runs(row, settings, system.recipe, config))
        yield Row(row, runs, {name: (key, float(point[key]))} if key else {})


def _runs(row: str, settings: Sequence[str], recipe: str, config: SweepConfig) -> Iterator[Run]:
    read = load_recipe(recipe, settings)  # once for all seeds
    arguments = [*settings]
    if config.score_on == "validation":
        read.data.test = read.data.validation
        arguments.append(f"data.test={json.dumps(read.data.test)}")
    for seed in config.seeds:
        name = f"{config.runs or config.name}/{plain(row)}-{seed}"
        yield Run(replace(read, seed=seed, name=name), (recipe, *arguments, f"seed={seed}", f"name={name}"))


def _number(system: SystemConfig) -> str:
    """The key of a grid over one number; empty for any other grid."""
    if len(system.grid) != 1:
        return ""
    ((key, values),) = system.grid.items()
    return key if all(type(each) in (int, float) for each in values) else ""


def _with_curves(rows: Sequence[Row], config: SweepConfig) -> tuple[Row, ...]:
    """Add systems without a grid to the curves of systems that differ only in a grid over one number.

    Such a system replaces the row of the same value.
    """
    curves = {row.name: dict(row.curves) for row in rows}
    for row in rows:
        for name, key in _grids_around(row.name, config):
            value = OmegaConf.select(OmegaConf.create(recipe_to_dict(row.runs[0].recipe)), key)
            if type(value) in (int, float):
                for twin in (other for other in rows if other.curves.get(name) == (key, value)):
                    curves.pop(twin.name, None)
                curves[row.name][name] = key, float(value)
    return tuple(Row(row.name, row.runs, curves[row.name]) for row in rows if row.name in curves)


def _grids_around(name: str, config: SweepConfig) -> Iterator[tuple[str, str]]:
    """The systems that differ from this one only in a grid over one number, with its key."""
    own = config.systems.get(name)
    if own is not None and not own.grid:
        for other, system in config.systems.items():
            if (key := _number(system)) and (own.recipe, own.set) == (system.recipe, system.set):
                yield other, key
