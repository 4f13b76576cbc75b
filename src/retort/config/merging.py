"""Merging of the layers of a recipe, files and overrides, and their conversion to the dataclasses of a schema.

Layers are merged as plain mappings. Only then are the kinds of the parts known (:mod:`retort.config.kinds`), which choose
the dataclasses; values are converted to the types of the fields, and unknown keys are errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retort.common.errors import UserError
from retort.config.kinds import Inner, inner_parts
from retort.config.layers import one_line
from retort.config.ranges import UnknownChoice, check_ranges

T = TypeVar("T")


class UnknownKey(UserError):
    """A key that is not a field of the schema."""


BROKEN = (OmegaConfBaseException, ValueError, TypeError, IndexError, ArithmeticError, RecursionError)
"""Exceptions that OmegaConf raises for invalid values."""


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
    parts themselves and that the new kind has as well, such as the encoder of a student.
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
        old = {name: value for name, value in old.items() if name in inner_parts(chosen)}
    return lay_over(old, new, chosen)


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
    except BROKEN as error:
        raise UserError(_message(error, "")[1], where=where) from None
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
        if part is not None and part.container is None and isinstance(value, Mapping):
            below[name] = _chosen(part, value, key, root)
        elif part is not None and part.container is dict and isinstance(value, Mapping):
            below[name] = {each: _chosen(part, found, f"{key}.{each}", root) for each, found in value.items()}
        elif part is not None and part.container is list and isinstance(value, list):
            below[name] = [_chosen(part, found, f"{key}[{place}]", root) for place, found in enumerate(value)]
        else:
            own[name] = value
    try:
        node: Any = OmegaConf.merge(OmegaConf.structured(schema), own)
        for name, value in below.items():
            node[name] = value
    except BROKEN as error:
        single = next((name for name, value in own.items() if name in inner and not isinstance(value, list)), "")
        key, message = _message(error, above, single)
        raise _Invalid(UserError, key, message) from None
    assert isinstance(node, DictConfig)
    return node


def _chosen(inner: Inner, value: object, key: str, root: type) -> object:
    if not isinstance(value, Mapping):
        return value
    try:
        chosen = inner.chosen(value, key)
    except UnknownChoice as error:
        raise _Invalid(UnknownChoice, f"{key}.kind", error.what, error.remedy) from None
    return _node(chosen, value, f"{key}.", root)


def _message(error: Exception, above: str, single: str = "") -> tuple[str, str]:
    """Key and one-line message of an error of OmegaConf, which does not name a section set to a `single` value."""
    key, message = getattr(error, "full_key", None) or single, one_line(error)
    if "is not a" in message and "subclass" in message:
        message = f"a section is set to a single value ({message})"
    elif "is not a ListConfig" in message:
        message = "a list is needed, in square brackets"
    full = f"{above}{key}" if key else above.rstrip(".")
    return full, f"{full}: {message}" if full else message


def _unknown(schema: type, leaf: str, key: str, root: type) -> _Invalid:
    """The error for a key that the dataclass does not have, with the most similar one."""
    names = [each.name for each in fields(schema) if each.name != "kind"]
    if len(names) < len(fields(schema)):
        near = difflib.get_close_matches(leaf, names, n=1)
        what = f"unknown key '{key}' of kind {schema.kind}"  # type: ignore[attr-defined]
        hint = f"Did you mean '{near[0]}'? " if near else ""
        return _Invalid(UnknownKey, key, what, f"{hint}The keys of this kind are {', '.join(names)}")
    known = sorted(set(all_keys(root)))
    elsewhere = [each for each in known if each.split(".")[-1] == leaf]
    leaves = sorted({each.split(".")[-1] for each in known})
    near = elsewhere or difflib.get_close_matches(leaf, leaves, n=1)
    remedy = (
        f"Did you mean {' or '.join(map(repr, near))}?"
        if near
        else f"The keys are documented in {root.__module__.replace('.', '/')}.py"
    )
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
