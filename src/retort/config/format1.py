"""Configurations as earlier versions wrote them: one flat set of keys for all kinds of a part.

They are in models of the formats 1 to 4 and in the folders of earlier experiments. Values that are missing had the
defaults below; keys that the kind does not use are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from retort.config.kinds import inner_parts

_ENCODER = {
    "kind": "conformer",
    "layers": 15,
    "dim": 256,
    "dropout": 0.1,
    "pool_after": [5, 10],
}
_SECTIONS = {"features", "student", "teachers"}


def is_flat(values: Mapping[str, Any]) -> bool:
    """Whether the values of a recipe, or of a part of one, were written by an earlier version."""
    student = values.get("student")
    if not isinstance(student, Mapping):
        return False
    marks = {"encoder": {"bottleneck", "dilations", "heads", "kernel"}, "decoder": {"glancing", "init_layers"}}
    return any(keys <= student[part].keys() for part, keys in marks.items() if isinstance(student.get(part), Mapping))


def by_kind(values: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """The values of a flat configuration with the keys that each kind has."""
    result = dict(values)
    student = dict(values["student"])
    encoder = _ENCODER | student.get("encoder", {})
    if encoder["kind"] == "zipformer":
        encoder |= encoder.get("zipformer", {})
    student["encoder"] = encoder
    result["student"] = student
    inner = inner_parts(schema)
    return result | {
        name: _fitting(inner[name].chosen(result[name], name), result[name]) for name in ("student",) if name in result
    }


def _fitting(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has, and likewise in its parts."""
    inner, names = inner_parts(config), {each.name for each in fields(config)}
    return {
        name: _fitting(inner[name].chosen(value), value)
        if name in inner and inner[name].container is None and isinstance(value, Mapping)
        else value
        for name, value in values.items()
        if name in names
    }
