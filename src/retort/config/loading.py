"""Reading of recipes: the defaults of `config/schema.py`, overridden by YAML files and by `a.b=c` overrides.

A recipe is a YAML file. With `base: NAME` it extends another recipe, with `base: [NAME, NAME]` several ones in this
order; a base that is reached twice is read once. Unknown keys are errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retort.common.errors import UserError, printable
from retort.common.files import UPDATE
from retort.config.checks import UnknownChoice, check_choices, check_recipe
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
    """Names of the packaged recipes, such as `aishell1/cif`."""
    root = resources.files("retort") / "recipes"
    folder = Path(str(root))
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def recipe_summary(name: str) -> str:
    """The first sentence of the comment at the top of a packaged recipe; empty without a comment."""
    lines = []
    for line in (Path(str(resources.files("retort") / "recipes")) / f"{name}.yaml").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    text = " ".join(lines)
    return re.split(r"(?<!et al)\. (?=[A-Z`])|[:;] ", text, maxsplit=1)[0].rstrip(".")


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Open a recipe by name or path, and apply `a.b=c` overrides.

    Raises:
        UserError: the recipe does not exist, a key is unknown, or a value is invalid.
    """
    for start, (kind, verb) in OTHER_KINDS.items():
        if recipe.startswith(start):
            raise UserError(kind, where=recipe, remedy=f"Run it with `{verb}`")
    result = read_recipe(Recipe, recipe, overrides)
    check_recipe(result, recipe)
    return result


def read_recipe(schema: type[T], recipe: str, overrides: Sequence[str] = ()) -> T:
    """Read a recipe as an instance of the dataclass `schema`, without checking its values against each other.

    Raises:
        UserError: the recipe does not exist, a key is unknown, a value has the wrong type, a number is out of range,
            or the experiment's name is not a path below `exp/`.
    """
    merged = OmegaConf.structured(schema)
    for path, content in files_of_recipe(recipe):
        try:
            merged = OmegaConf.merge(merged, content)
        except BROKEN as error:
            raise _explain(error, str(path), schema) from None
    for override in overrides:
        _lay_over(merged, override, schema)
    return _to_object(merged, recipe, schema)


def files_of_recipe(recipe: str) -> list[tuple[Path, DictConfig]]:
    """The files that a recipe is made of, the outermost base first, with what each of them sets.

    Raises:
        UserError: no such recipe, or a file is not valid YAML.
    """
    return [(path, _read_yaml(path)) for path in _with_bases(_find(recipe))]


def recipe_title(path: Path) -> str:
    """The name of a packaged recipe's file, or the path."""
    root = Path(str(resources.files("retort") / "recipes"))
    return str(path.relative_to(root).with_suffix("")) if path.is_relative_to(root) else str(path)


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


def _find(recipe: str, folder: Path | None = None) -> Path:
    """The file of a recipe; a relative path is resolved from `folder` first."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        for each in ([folder / path] if folder else []) + [path]:
            if each.is_file():
                return each
        raise UserError(
            "no such file", where=recipe, remedy="Give a recipe's name or the path of a YAML file"
        )
    packaged = Path(str(resources.files("retort") / "recipes" / f"{recipe}.yaml"))
    if packaged.is_file():
        return packaged
    near = difflib.get_close_matches(recipe, recipe_names(), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Recipes: {', '.join(recipe_names())}"
    raise UserError("no such recipe", where=recipe, remedy=hint)


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """The recipe's file, preceded by the files of its bases, each of them once."""
    if path.resolve() in above:
        raise UserError("base: is circular", where=path)
    content = _read_yaml(path, keep_base=True)
    named = content["base"] if "base" in content else ListConfig([])
    chain: list[Path] = []
    for name in named if isinstance(named, ListConfig) else [named]:
        base = _find(str(name), path.parent)
        chain += [each for each in _with_bases(base, (*above, path.resolve())) if each not in chain]
    return [*chain, path]


def _read_yaml(path: Path, keep_base: bool = False) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # yaml has many exception types; the text contains line and column
        raise UserError(f"not valid YAML ({_one_line(error)})", where=path) from None
    if not isinstance(content, DictConfig):
        raise UserError("is not a mapping of keys to values", where=path)
    if not keep_base:
        content.pop("base", None)
    return content


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
        raise UserError(f"cannot be read ({_one_line(error)})", where=where) from None
    try:
        OmegaConf.update(merged, key, value)
    except BROKEN as error:
        raise _explain(error, where, schema) from None


def _explain(error: Exception, where: str, schema: type) -> UserError:
    key = getattr(error, "full_key", None) or ""
    message = _one_line(error)
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
