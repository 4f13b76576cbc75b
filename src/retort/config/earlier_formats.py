"""Configurations as earlier versions wrote them: one flat set of keys for all kinds of a part.

They are in models of the formats 1 to 5 and in the folders of earlier experiments. Values that are missing had the
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
_SECTIONS = ("student", "features", "teachers")


def is_flat(values: Mapping[str, Any]) -> bool:
    """Whether the values of a recipe, or of a part of one, were written by an earlier version."""
    student, teachers, features = (_mapping(values.get(name)) for name in ("student", "teachers", "features"))
    if "storage" in features and ("pad_seconds" in features or features.get("kind", "fbank") != "fbank"):
        return True
    if any({"unit", "language"} <= each.keys() for each in teachers.values()):
        return True
    if {"cif", "transducer"} <= student.keys():
        return True
    marks = {"encoder": {"bottleneck", "dilations", "heads", "kernel"}, "decoder": {"glancing", "init_layers"}}
    return any(keys <= _mapping(student.get(part)).keys() for part, keys in marks.items())


def by_kind(values: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """The values of a flat configuration with the keys that each kind has."""
    result = dict(values)
    if "student" in values:
        student = dict(values["student"])
        encoder = _ENCODER | student.get("encoder", {})
        if encoder["kind"] == "zipformer":
            encoder |= encoder.get("zipformer", {})
        history = _mapping(student.get("decoder")).get("history_dropout", 0.0)
        whisper = {"history_dropout": history} if student.get("kind") == "whisper" else {}
        result["student"] = student | {"encoder": encoder, **whisper}
    return result | _fitting(schema, {name: result[name] for name in _SECTIONS if name in result})


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _fitting(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has, and likewise in its parts."""
    inner, names = inner_parts(config), {each.name for each in fields(config)}
    result = {}
    for name, value in values.items():
        if name not in names:
            continue
        part = inner.get(name)
        if part is not None and part.container is dict and isinstance(value, Mapping):
            value = {each: _fitting(part.chosen(found, name), found) for each, found in value.items()}
        elif part is not None and part.container is None and isinstance(value, Mapping):
            value = _fitting(part.chosen(value, name), value)
        result[name] = value
    return result
