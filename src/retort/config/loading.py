"""Reading of recipes: the defaults of `config/schema.py`, the layers of `config/layers.py` and `a.b=c` overrides.

Unknown keys are errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retort.common.errors import UserError, printable
from retort.common.files import UPDATE
from retort.config.checks import UnknownChoice, check_choices, check_recipe
from retort.config.layers import FROM_PATH, Layer, experiment_name, layers_of, one_line, packaged
from retort.config.ranges import check_ranges
from retort.config.schema import CHOICES, Recipe

T = TypeVar("T")


class UnknownKey(UserError):
    """A key that is not a field of the schema."""


LONGEST_PART, MOST_PARTS = 200, 10
"""Maximum number of bytes in a part of an experiment's name, and of parts."""
BROKEN = (OmegaConfBaseException, ValueError, TypeError, IndexError, ArithmeticError, RecursionError)
"""Exceptions that OmegaConf raises for invalid values."""


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
    merged = OmegaConf.structured(schema)
    overlays, values = split_overrides(overrides)
    layers = [each for each in layers_of(recipe, overlays) if not _names_something_else(each, schema)]
    for layer in layers:
        try:
            merged.merge_with(layer.content)
        except BROKEN as error:
            raise _explain(error, layer.origin, schema) from None
    for override in values:
        _lay_over(merged, override, schema)
    _models_of_teachers(merged, [*(layer.content for layer in layers), *map(_nested, values)])
    return _to_object(merged, recipe, schema)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overlays `+NAME`, without the sign, and the values `a.b=c`."""
    overlays = [each[1:] for each in overrides if each.startswith("+")]
    return overlays, [each for each in overrides if not each.startswith("+")]


def _names_something_else(layer: Layer, schema: type) -> bool:
    """Whether a layer derives a name from the path that the schema has no field for."""
    return layer.origin == FROM_PATH and not set(map(str, layer.content)) <= set(get_type_hints(schema))


def _nested(override: str) -> DictConfig:
    """An override as nested values; empty if it changes an item of a list."""
    try:
        return OmegaConf.from_dotlist([override])
    except BROKEN:
        return OmegaConf.create({})


def _models_of_teachers(merged: DictConfig, settings: Sequence[DictConfig]) -> None:
    """Derive `model` from `recipe` for teachers whose `recipe` was set last, and remove a `recipe` that `model` replaces."""
    for setting in settings:
        teachers = setting.get("teachers")
        for name, teacher in teachers.items() if isinstance(teachers, DictConfig) else ():
            if not isinstance(teacher, DictConfig):
                continue
            recipe, model = teacher.get("recipe"), teacher.get("model")
            if recipe and model is None:
                model = f"exp/{experiment_name(str(recipe))}/model"
            if model is not None:
                merged["teachers"][name].update({"recipe": recipe or "", "model": model})


def recipe_from_dict(values: dict[str, Any], where: str) -> Recipe:
    """The recipe that was saved by :func:`recipe_to_dict`."""
    return read_dict(Recipe, values, where)


def read_dict(schema: type[T], values: dict[str, Any], where: str) -> T:
    """The same for a recipe with any `schema`."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    except BROKEN as error:
        raise _explain(error, where, schema) from None
    return _to_object(merged, where, schema)


def read_saved(schema: type[T], values: dict[str, Any], where: str) -> T:
    """Read the part of a recipe that is stored in a model's configuration.

    Raises:
        UserError: as :func:`read_dict`; an unknown key or choice is reported as that of a later version.
    """
    try:
        result = read_dict(schema, values, where)
        if isinstance(result, Recipe):
            check_choices(result, CHOICES, where)
        return result
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


def _to_object(merged: Any, where: str, schema: type[T]) -> T:
    try:
        result = OmegaConf.to_object(merged)
    except UserError as error:
        raise UserError(error.what, where=error.where or where, remedy=error.remedy) from None
    except BROKEN as error:
        raise _explain(error, where, schema) from None
    assert isinstance(result, schema)
    check_ranges(result, where)
    if "name" in get_type_hints(schema):
        check_name(vars(result)["name"], where)
    return result


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


def _lay_over(merged: DictConfig, override: str, schema: type) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"'{override}' is not an override", remedy="Write key=value, for example seed=2")
    where = f"override '{override}'"
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])["value"] if text else ""
    except Exception as error:  # yaml has many exception types
        raise UserError(f"cannot be read ({one_line(error)})", where=where) from None
    try:
        OmegaConf.update(merged, key, value)
    except BROKEN as error:
        raise _explain(error, where, schema) from None


def _explain(error: Exception, where: str, schema: type) -> UserError:
    key = getattr(error, "full_key", None) or ""
    message = one_line(error)
    if ("not in" in message or "is not a" in message) and "subclass" in message:
        return UserError(f"a section is set to a single value ({message})", where=where)
    if "not in" in message and key:
        leaf = key.split(".")[-1]
        known = sorted(_keys(schema))
        elsewhere = [each for each in known if each.split(".")[-1] == leaf]
        leaves = sorted({each.split(".")[-1] for each in known})
        near = elsewhere or difflib.get_close_matches(leaf, leaves, n=1)
        return UnknownKey(
            f"unknown key '{key}'",
            where=where,
            remedy=f"Did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"The keys are documented in {_source(schema)}",
        )
    return UserError(f"{key}: {message}" if key else message, where=where)


def _source(schema: type) -> str:
    return f"{schema.__module__.replace('.', '/')}.py"


def _keys(schema: type, above: str = "") -> Iterator[str]:
    """All keys, including nested ones: `training.steps`, `distill[].tap`, `teachers.NAME.kind`."""
    for name, hint in get_type_hints(schema).items():
        yield f"{above}{name}"
        within = {list: "[]", dict: ".NAME"}.get(get_origin(hint), "")
        for each in (hint, *get_args(hint)):
            if is_dataclass(each) and isinstance(each, type):
                yield from _keys(each, f"{above}{name}{within}.")
