"""Reading of recipes: the defaults of `config/schema.py`, the layers of `config/layers.py` and `a.b=c` overrides.

Unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf

from retort.common.errors import UserError, printable
from retort.common.files import UPDATE
from retort.config.checks import check_recipe
from retort.config.earlier_formats import by_kind, is_flat
from retort.config.layers import FROM_PATH, Layer, experiment_name, layers_of, packaged
from retort.config.merging import Settings, UnknownKey, build, merged, plain, with_overrides
from retort.config.ranges import UnknownChoice
from retort.config.schema import Recipe

T = TypeVar("T")


LONGEST_PART, MOST_PARTS = 200, 10
"""Maximum number of bytes in a part of an experiment's name, and of parts."""

OTHER_KINDS = {
    "lm/": ("is the recipe of a language model", "retort lm train"),
    "sweeps/": ("is a sweep", "retort sweep"),
}
"""Prefixes of packaged files that are not recipes of recognisers: what they are, and the verb that uses them."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes, their stages and variants, such as `aishell1/cif`."""
    return list(packaged())


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Open a recipe by name or path, and apply overlays `+NAME` and values `a.b=c`.

    Teachers that neither a row nor the tokenizer uses are left out.

    Raises:
        UserError: the recipe or an overlay does not exist, a key is unknown, or a value is invalid.
    """
    for start, (kind, verb) in OTHER_KINDS.items():
        if recipe.startswith(start):
            raise UserError(kind, where=recipe, remedy=f"Run it with `{verb}`")
    result = read_recipe(Recipe, recipe, overrides)
    check_recipe(result, recipe)
    used = {row.teacher for row in result.distill} | {result.tokenizer.teacher}
    result.teachers = {name: teacher for name, teacher in result.teachers.items() if name in used}
    return result


def read_recipe(schema: type[T], recipe: str, overrides: Sequence[str] = ()) -> T:
    """Read a recipe as an instance of the dataclass `schema`, without checking its values against each other.

    Args:
        recipe: name or path, and overlays (`config/layers.py`).
        overrides: overlays `+NAME` and values `a.b=c`; values are applied last.

    Raises:
        UserError: the recipe or an overlay does not exist, a key is unknown, a value has the wrong type, a number is out
            of range, or the experiment's name is not a path below `exp/`.
    """
    overlays, values = split_overrides(overrides)
    layers = [
        Settings(each.origin, plain(each.content))
        for each in layers_of(recipe, overlays)
        if not _names_something_else(each, schema)
    ]
    result, commands = with_overrides(merged(layers, schema), values, schema)
    _models_of_teachers(result, [*layers, *commands])
    return _named(build(schema, result, recipe, [*layers, *commands]), recipe)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overlays `+NAME`, without the sign, and the values `a.b=c`."""
    overlays = [each[1:] for each in overrides if each.startswith("+")]
    return overlays, [each for each in overrides if not each.startswith("+")]


def _names_something_else(layer: Layer, schema: type) -> bool:
    """Whether a layer derives a name from the path that the schema has no field for."""
    return layer.origin == FROM_PATH and not set(map(str, layer.content)) <= set(get_type_hints(schema))


def _models_of_teachers(values: dict[str, Any], layers: Sequence[Settings]) -> None:
    """Derive `model` from `recipe` for teachers whose `recipe` was set last, and remove a `recipe` that `model` replaces."""
    for layer in layers:
        teachers = layer.values.get("teachers")
        for name, teacher in teachers.items() if isinstance(teachers, Mapping) else ():
            if not isinstance(teacher, Mapping):
                continue
            recipe, model = teacher.get("recipe"), teacher.get("model")
            if recipe and model is None:
                model = f"exp/{experiment_name(str(recipe))}/model"
            if model is not None and isinstance(values["teachers"], dict) and isinstance(values["teachers"][name], dict):
                values["teachers"][name] |= {"recipe": recipe or "", "model": model}


def recipe_from_dict(values: dict[str, Any], where: str) -> Recipe:
    """The recipe that was saved by :func:`recipe_to_dict`."""
    return read_dict(Recipe, values, where)


def read_dict(schema: type[T], values: dict[str, Any], where: str) -> T:
    """The same for a recipe with any `schema`."""
    if is_flat(values):
        values = by_kind(values, schema)
    return _named(build(schema, values, where), where)


def read_saved(schema: type[T], values: dict[str, Any], where: str) -> T:
    """Read the part of a recipe that is stored in a model's configuration.

    Raises:
        UserError: as :func:`read_dict`; an unknown key or choice is reported as that of a later version.
    """
    try:
        return read_dict(schema, values, where)
    except (UnknownKey, UnknownChoice) as error:
        what = f"was written by a later version of Retort, or is damaged: {error.what}"
        raise UserError(what, where=where, remedy=UPDATE) from None


def recipe_to_dict(recipe: object) -> dict[str, Any]:
    """Convert a recipe of any kind to values that can be written as JSON."""
    result = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def differing(config: Any) -> dict[str, Any]:
    """The values of a part of a recipe that differ from the defaults, so that keys of later versions change nothing."""
    values, defaults = asdict(config), asdict(type(config)())
    return _less(values, defaults)


def _less(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _less(value, default) if isinstance(value, dict) and isinstance(default, dict) else value
        for key, value in values.items()
        if value != (default := defaults.get(key))
    }


def _named(recipe: T, where: str) -> T:
    if isinstance(name := vars(recipe).get("name"), str):
        check_name(name, where)
    return recipe


def check_name(name: str, where: str) -> None:
    """Check that the name of an experiment is a path below `exp/`.

    Raises:
        UserError: it is empty, absolute or too long, or contains `..` or non-printable characters.
    """

    def bad(part: str) -> bool:
        return (
            part in ("", ".", "..")
            or part != part.strip()
            or len(part.encode(errors="replace")) > LONGEST_PART
        )

    parts = name.split("/")
    if any(map(bad, parts)) or len(parts) > MOST_PARTS or printable(name) != name or name[0] in "~-":
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise UserError(
            f"name is '{shown}'",
            where=where,
            remedy="Choose a path below exp/, such as english/cif, without '..', without '/' at the start or end, and "
            "without non-printable characters",
        )
