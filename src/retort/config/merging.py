"""Merging of the layers of a recipe, files and overrides, and their conversion to the dataclasses of a schema.

Layers are merged as plain mappings. Only then are the kinds of the parts known (:mod:`retort.config.kinds`), which choose
the dataclasses; values are converted to the types of the fields, and unknown keys are errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from retort.common.errors import UserError
from retort.config.kinds import Inner, inner_parts
from retort.config.layers import one_line
from retort.config.ranges import UnknownChoice, check_ranges

T = TypeVar("T")


class UnknownKey(UserError):
    """A key that is not a field of the schema."""


BROKEN = (OmegaConfBaseException, ValueError, TypeError, IndexError, ArithmeticError, RecursionError)
"""Exceptions that OmegaConf raises for invalid values."""
_MOST_SHOWN = 3
"""Keys that are proposed in place of an unknown one."""


@dataclass(frozen=True)
class Settings:
    """Values of one source of a recipe.

    Attributes:
        where: the file or the override, for messages.
        values: nested mappings.
    """

    where: str
    values: Mapping[str, Any]


class _Invalid(Exception):
    """A value that is not valid: class, key and texts of the error."""

    def __init__(self, kind: type[UserError], key: str, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.kind, self.key, self.what, self.remedy = kind, key, what, remedy


def lay_over(values: Mapping[str, Any], layer: Mapping[str, Any], schema: type | None) -> dict[str, Any]:
    """The values with a layer over them; mappings are merged, everything else is replaced.

    A layer that changes the kind of a part starts this part afresh: of the former values only those remain that are
    parts themselves and that the new kind has as well, such as the encoder of a student. If such a part has other keys
    in the new kind, those that it does not have are dropped.
    """
    result, inner = dict(values), inner_parts(schema) if schema else {}
    for name, new in layer.items():
        old, part = result.get(name), inner.get(name)
        if not isinstance(new, Mapping):
            result[name] = new
            continue
        old = old if isinstance(old, Mapping) else {}
        if part is not None and part.container is dict:
            result[name] = dict(old) | {
                each: _part_over(old.get(each), value, part) if isinstance(value, Mapping) else value
                for each, value in new.items()
            }
        elif part is not None and part.container is None:
            result[name] = _part_over(old, new, part)
        else:
            result[name] = lay_over(old, new, None)
    return result


def _part_over(old: object, new: Mapping[str, Any], inner: Inner) -> dict[str, Any]:
    """:func:`lay_over` of one part, which may change its kind."""
    old = old if isinstance(old, Mapping) else {}
    try:
        former = inner.chosen(old)
        chosen = inner.chosen({**old, **new})
    except UnknownChoice:  # reported with the final values
        return lay_over(old, new, None)
    if former is not chosen:
        before, after = inner_parts(former), inner_parts(chosen)
        old = {
            name: value if name in before and before[name].config is after[name].config else _known(value, after[name])
            for name, value in old.items()
            if name in after
        }
    return lay_over(old, new, chosen)


def _known(value: object, inner: Inner) -> object:
    """The values of a part that its dataclass has."""
    names = {each.name for each in fields(inner.config)}
    return {name: each for name, each in value.items() if name in names} if isinstance(value, Mapping) else value


def merged(layers: Sequence[Settings], schema: type) -> dict[str, Any]:
    """The values of all layers, the last ones over the first."""
    values: dict[str, Any] = {}
    for layer in layers:
        values = lay_over(values, layer.values, schema)
    return values


def with_overrides(
    values: Mapping[str, Any], overrides: Sequence[str], schema: type
) -> tuple[dict[str, Any], list[Settings]]:
    """The values with `key=value`s of the command line over them, and these as layers.

    Overrides are one layer, so that their order only matters if a key is repeated; those whose key has indices of lists
    follow.

    Raises:
        UserError: an override is not of this form; the value must be YAML.
    """
    layers, together, indexed = [], dict[str, Any](), []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"'{override}' is not an override", remedy="Write key=value, for example seed=2")
        where = f"override '{override}'"
        try:
            value: Any = plain(OmegaConf.from_dotlist([f"value={text}"]))["value"] if text else ""
        except Exception as error:  # yaml has many exception types
            raise UserError(f"cannot be read ({one_line(error)})", where=where) from None
        parts = _parts(key) or [key]
        if any(part.isdecimal() for part in parts):
            indexed.append((where, key, value))
            continue
        for part in reversed(parts):
            value = {part: value}
        layers.append(Settings(where, value))
        together = lay_over(together, value, None)
    result = lay_over(values, together, schema)
    for where, key, value in indexed:
        node, name = OmegaConf.create(result), _parts(key)[0]
        try:
            OmegaConf.update(node, key, value)
        except BROKEN as error:
            raise UserError(f"{key}: {one_line(error)}", where=where) from None
        layers.append(Settings(where, {name: plain(node)[name]}))
        result = lay_over(result, layers[-1].values, schema)
    return result, layers


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration as nested mappings and lists."""
    result = OmegaConf.to_container(node)
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def build(schema: type[T], values: Mapping[str, Any], where: str, layers: Sequence[Settings] = ()) -> T:
    """An instance of a dataclass with values that were merged.

    Args:
        schema: the dataclass.
        values: nested mappings.
        where: for messages.
        layers: where the values come from, for messages.

    Raises:
        UserError: a key is unknown, a value has the wrong type, or :func:`retort.config.ranges.check_ranges` rejects it.
    """
    try:
        result = OmegaConf.to_object(_node(schema, values, "", schema))
    except _Invalid as error:
        found = next((each.where for each in reversed(layers) if _has(each.values, _parts(error.key))), where)
        raise error.kind(error.what, where=found, remedy=error.remedy) from None
    except UserError as error:
        raise type(error)(error.what, where=error.where or where, remedy=error.remedy) from None
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing", where=where, remedy="Set it") from None
    except BROKEN as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key}: {one_line(error)}" if key else one_line(error), where=where) from None
    assert isinstance(result, schema)
    check_ranges(result, where)
    return result


def _node(schema: type, values: Mapping[str, Any], above: str, root: type) -> DictConfig:
    """The values as a typed configuration of the dataclasses that the kinds choose."""
    inner, known = inner_parts(schema), {each.name for each in fields(schema)}
    own, below = {}, {}
    for name, value in values.items():
        key = f"{above}{name}"
        if name not in known:
            raise _unknown(schema, str(name), key, root)
        part = inner.get(name)
        if part is None:
            own[name] = value
        elif part.container is None:
            below[name] = _chosen(part, value, key, root)
        elif part.container is dict and isinstance(value, dict):
            below[name] = {each: _chosen(part, found, f"{key}.{each}", root) for each, found in value.items()}
        elif part.container is list and isinstance(value, list):
            below[name] = [_chosen(part, found, f"{key}[{place}]", root) for place, found in enumerate(value)]
        else:
            raise _of_type(key, value, part.container)
    try:
        node: Any = OmegaConf.merge(_structured(schema), own)
    except BROKEN:
        raise _first_invalid(schema, own, above) from None
    node._set_flag("no_deepcopy_set_nodes", True)
    for name, value in below.items():
        node[name] = value
    assert isinstance(node, DictConfig)
    return node


@cache
def _structured(schema: type) -> DictConfig:
    """The defaults of a dataclass, to be merged with values, which copies them."""
    return OmegaConf.structured(schema)


def _chosen(inner: Inner, value: object, key: str, root: type) -> object:
    if not isinstance(value, Mapping):
        kind = inner.part is not None and isinstance(value, str) and value in inner.part.kinds
        keys = f"It has keys of its own: {', '.join(each.name for each in fields(inner.config))}"
        raise _Invalid(UserError, key, f"{key} is {_shown(value)}", f"Set {key}.kind: {value}" if kind else keys)
    try:
        chosen = inner.chosen(value, key)
    except UnknownChoice as error:
        raise _Invalid(UnknownChoice, f"{key}.kind", error.what, error.remedy) from None
    return _node(chosen, value, f"{key}.", root)


def _first_invalid(schema: type, values: Mapping[str, Any], above: str) -> _Invalid:
    """The error for the first value that its field does not accept."""
    hints = get_type_hints(schema)
    for name, value in values.items():
        try:
            OmegaConf.merge(_structured(schema), {name: value})
        except BROKEN:
            return _of_type(f"{above}{name}", value, hints[name])
    raise AssertionError("every value is valid")


def _of_type(key: str, value: object, hint: object) -> _Invalid:
    """The error for a value that is not of a type."""
    return _Invalid(UserError, key, f"{key} is {_shown(value)}", f"Give {_type_in_words(hint)}")


def _type_in_words(hint: object) -> str:
    arguments = [each for each in get_args(hint) if each is not type(None)]
    if type(None) in get_args(hint):
        return f"{_type_in_words(arguments[0])}, or null"
    if hint is list or get_origin(hint) is list:
        inner = f" of {_PLURALS[arguments[0]]}" if arguments and arguments[0] in _PLURALS else ""
        return f"a list{inner} in square brackets"
    words: dict[object, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, "a mapping of keys to values")


_PLURALS: dict[object, str] = {int: "integers", float: "numbers", str: "texts"}


def _shown(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(schema: type, leaf: str, key: str, root: type) -> _Invalid:
    """The error for a key that the dataclass does not have, with the most similar one."""
    names = [each.name for each in fields(schema) if each.name != "kind"]
    if len(names) < len(fields(schema)):
        near = difflib.get_close_matches(leaf, names, n=1)
        what = f"unknown key '{key}' of kind {schema.kind}"  # type: ignore[attr-defined]
        hint = f"Did you mean '{near[0]}'? " if near else ""
        return _Invalid(UnknownKey, key, what, f"{hint}The keys of this kind are {', '.join(names)}")
    known = sorted({each for each in all_keys(root) if each != key})
    elsewhere = [each for each in known if each.split(".")[-1] == leaf]
    section = key.rpartition(".")[0]
    leaves = names if section else sorted({each.split(".")[-1] for each in known})
    near = elsewhere if 0 < len(elsewhere) <= _MOST_SHOWN else difflib.get_close_matches(leaf, leaves, n=1)
    if near:
        remedy = f"Did you mean {' or '.join(map(repr, near))}?"
    elif section:
        remedy = f"The keys of {section} are {', '.join(names)}"
    else:
        remedy = "`retort config --all-keys` lists all keys"
    return _Invalid(UnknownKey, key, f"unknown key '{key}'", remedy)


def all_keys(schema: type, above: str = "") -> Iterator[str]:
    """All keys of all kinds, including nested ones: `training.steps`, `distill[].tap`, `teachers.NAME.kind`."""
    inner = inner_parts(schema)
    for each in fields(schema):
        yield f"{above}{each.name}"
        if (part := inner.get(each.name)) is not None:
            for config in part.all().values():
                yield from all_keys(config, f"{above}{each.name}{part.below}.")


def _parts(key: str) -> list[str]:
    return [part for part in re.split(r"[.\[\]]+", key) if part]


def _has(values: object, parts: Sequence[str]) -> bool:
    """Whether a layer sets the key with these parts."""
    for part in parts:
        if isinstance(values, list) and part.isdecimal() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, Mapping) and part in values:
            values = values[part]
        else:
            return False
    return True
