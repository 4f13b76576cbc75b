"""Reading recipes: YAML over the defaults of `config.py`, `a.b=c` over YAML. Unknown keys are errors.

A recipe is one YAML file. `base: NAME` at its top takes another recipe first, `base: [NAME, NAME]` several, one after
the other; a file that several of them are based on is taken once.
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
    """A key that is no field of the schema."""


LONGEST_PART, MOST_PARTS = 200, 10
"""Bytes of a part of an experiment's name, and parts."""
BROKEN = (OmegaConfBaseException, ValueError, TypeError, IndexError, ArithmeticError, RecursionError)
"""What values of any kind, laid into a recipe, can make OmegaConf raise."""


OTHER_KINDS = {
    "lm/": ("the recipe of a language model", "retort lm train"),
    "sweeps/": ("a sweep", "retort sweep"),
}
"""How the names of packaged files begin that are no recogniser's: what they are, and the verb that takes them."""


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
    """Open a recipe by name or path and lay `a.b=c` overrides over it.

    Raises:
        UserError: no such recipe, an unknown key, a value of the wrong type or not among the choices.
    """
    for start, (kind, verb) in OTHER_KINDS.items():
        if recipe.startswith(start):
            raise UserError(kind, where=recipe, remedy=f"Use it with `{verb}`")
    result = read_recipe(Recipe, recipe, overrides)
    check_recipe(result, recipe)
    return result


def read_recipe(schema: type[T], recipe: str, overrides: Sequence[str] = ()) -> T:
    """A recipe of the kind that the dataclass `schema` describes, its values not checked against each other.

    Raises:
        UserError: no such recipe, an unknown key, a value of the wrong type, a number out of its range, or a name that
            is no folder's below the experiments.
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
    """A recipe that was saved with :func:`recipe_to_dict`."""
    return read_dict(Recipe, values, where)


def read_dict(schema: type[T], values: dict[str, Any], where: str) -> T:
    """The same for any kind of recipe."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    except BROKEN as error:
        raise _explain(error, where, schema) from None
    return _to_object(merged, where, schema)


def read_saved(schema: type[T], values: dict[str, Any], where: str) -> T:
    """What of a recipe stands in a model's configuration.

    Raises:
        UserError: as :func:`read_dict`; a key or a choice that this version does not know is one of a later version.
    """
    try:
        result = read_dict(schema, values, where)
        if isinstance(result, Recipe):
            check_choices(result, CHOICES, where)
        return result
    except (UnknownKey, UnknownChoice) as error:
        what = f"a later version of Retort wrote it, or it is damaged: {error.what}"
        raise UserError(what, where=where, remedy=UPDATE) from None


def recipe_to_dict(recipe: object) -> dict[str, Any]:
    """What JSON can hold of a recipe of any kind."""
    result = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def differing(config: Any) -> dict[str, Any]:
    """What of a part of a recipe is not its default: this stays what it was when a later version has more keys."""
    values, defaults = asdict(config), asdict(type(config)())
    return _less(values, defaults)


def _less(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _less(value, default) if isinstance(value, dict) and isinstance(default, dict) else value
        for key, value in values.items()
        if value != (default := defaults.get(key))
    }


def _find(recipe: str, beside: Path | None = None) -> Path:
    """The file of a recipe; a path is tried from the folder `beside` first."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        for each in ([beside / path] if beside else []) + [path]:
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
    """The recipe's file after the files it is based on, outermost base first, each once."""
    if path.resolve() in above:
        raise UserError("base: goes in a circle", where=path)
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
    except Exception as error:  # yaml raises a family of its own; its text has line and column
        raise UserError(f"not valid YAML ({_one_line(error)})", where=path) from None
    if not isinstance(content, DictConfig):
        raise UserError("a recipe is a mapping of keys to values", where=path)
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
    """Refuse the name of an experiment that is no path below `exp/`.

    Raises:
        UserError: it is empty, absolute or too long, has `..` in it, or characters that cannot be printed.
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
            remedy="Choose a path below exp/, such as english/cif: no '..', no '/' at its ends, nothing that cannot be "
            "printed",
        )


def _lay_over(merged: DictConfig, override: str, schema: type) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"'{override}' is not an override", remedy="Write key=value, for example seed=2")
    where = f"override '{override}'"
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])["value"] if text else ""
    except Exception as error:  # yaml raises a family of its own
        raise UserError(f"cannot be read ({_one_line(error)})", where=where) from None
    try:
        OmegaConf.update(merged, key, value)
    except BROKEN as error:
        raise _explain(error, where, schema) from None


def _explain(error: Exception, where: str, schema: type) -> UserError:
    key = getattr(error, "full_key", None) or ""
    message = _one_line(error)
    if ("not in" in message or "is not a" in message) and "subclass" in message:
        return UserError(f"a whole part is set to a single value ({message})", where=where)
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
            else f"See {_source(schema)} for the keys",
        )
    return UserError(f"{key}: {message}" if key else message, where=where)


def _source(schema: type) -> str:
    return f"{schema.__module__.replace('.', '/')}.py"


def _keys(schema: type, above: str = "") -> Iterator[str]:
    """All keys, those of parts too: `training.steps`, `distill[].tap`, `teachers.NAME.kind`."""
    for name, hint in get_type_hints(schema).items():
        yield f"{above}{name}"
        within = {list: "[]", dict: ".NAME"}.get(get_origin(hint), "")
        for each in (hint, *get_args(hint)):
            if is_dataclass(each) and isinstance(each, type):
                yield from _keys(each, f"{above}{name}{within}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
