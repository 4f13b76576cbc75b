"""The keys of recipes: their documentation, their defaults, and where a recipe's values come from."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import yaml

from retort.config.kinds import Inner, inner_parts
from retort.config.layers import layers_of
from retort.config.loading import load_recipe, recipe_to_dict, split_overrides
from retort.config.merging import lay_over, plain, with_overrides
from retort.config.ranges import choices_of, range_of
from retort.config.schema import Recipe

DEFAULT = "default"
OVERRIDE = "command line"


@dataclass(frozen=True)
class Key:
    """A key that a recipe may have.

    Attributes:
        name: with the parts above it, such as `training.steps`; `[]` stands for an item of a list, `NAME` for a name that
            the recipe chooses.
        kind: type, as Python writes it.
        default: as YAML.
        values: the choices or the range, if it has any.
        text: documentation.
        of: the kind that has it, such as `kind conformer`; empty for all kinds.
    """

    name: str
    kind: str
    default: str
    values: str
    text: str
    of: str = ""


def field_texts(config: type) -> Mapping[str, str]:
    """The documentation of each field of a dataclass, inherited ones too: the string below it in the source, on one line."""
    found: dict[str, str] = {}
    for base in reversed([each for each in config.__mro__ if is_dataclass(each)]):
        found |= _texts_in(inspect.getsource(base))
    return found


def _texts_in(source: str) -> dict[str, str]:
    (body,) = (
        node.body for node in ast.parse(textwrap.dedent(source)).body if isinstance(node, ast.ClassDef)
    )
    found = {}
    for node, after in zip(body, [*body[1:], None]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        text = (
            after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        )
        if text:
            found[node.target.id] = " ".join(str(text).split())
    return found


def keys_of(config: type = Recipe, above: str = "", of: str = "", but: Collection[str] = ()) -> Iterator[Key]:
    """All keys below `config`, in the order of the source, without the parts that have keys themselves.

    The keys of a part with kinds are those that all kinds have, followed by the others of each kind.

    Args:
        above: the part's key, with a point.
        of: as in :class:`Key`.
        but: fields that are left out.
    """
    hints, texts, inner = get_type_hints(config), field_texts(config), inner_parts(config)
    parts = {}
    for each in fields(config):
        if each.name in but:
            continue
        if each.name in inner:
            parts[each.name] = inner[each.name]
            continue
        allowed = choices_of(config, each.name)
        values = ", ".join(allowed) if allowed else str(range_of(config, each.name) or "")
        made = each.default if each.default is not MISSING else None
        if each.default_factory is not MISSING:
            made = each.default_factory()
        default = "" if each.default is MISSING and each.default_factory is MISSING else _flow(made)
        kind = inspect.formatannotation(hints[each.name]).replace("typing.", "")
        yield Key(above + each.name, kind, default, values, texts.get(each.name, ""), of)
    for name, part in parts.items():
        yield from _keys_of_part(part, above + name + part.below, of and above + of)


def _keys_of_part(part: Inner, name: str, of: str) -> Iterator[Key]:
    if part.part is None:
        yield from keys_of(part.config, f"{name}.", of)
        return
    kinds = part.part.kinds
    text = " ".join(f"`{kind}`: {each.text}" for kind, each in kinds.items())
    yield Key(f"{name}.kind", "str", part.part.default, "", f"Kind of this part, which chooses its keys. {text}")
    shared = {each.name for each in fields(part.config)}
    yield from keys_of(part.config, f"{name}.", but={"kind"})
    for kind, config in part.all().items():
        yield from keys_of(config, f"{name}.", f"kind {kind}", shared)


def recipe_lines(recipe: str, overrides: Sequence[str] = (), *, changed: bool, texts: bool) -> Iterator[str]:
    """A recipe with all that it inherits, as YAML with comments; at the end, as comments, the stages before it.

    Args:
        changed: only the keys whose values are not the defaults.
        texts: each key's documentation above it.

    Raises:
        UserError: as :func:`retort.config.loading.load_recipe`.
    """
    loaded = load_recipe(recipe, overrides)
    origins = _origins(recipe, overrides)
    yield from _part(loaded, "", 0, origins, changed, texts)
    yield from _stage_lines(loaded)


def _stage_lines(recipe: Recipe) -> Iterator[str]:
    """The recipes that are trained before this one, the first one first, each with the values in which it differs."""
    stages: list[tuple[str, Recipe]] = []
    later = recipe
    while (name := later.training.warm_start) and name not in [each for each, _ in stages]:
        later = load_recipe(name)
        stages.append((name, later))
    if stages:
        yield "# Trained before it, with the values in which each differs:"
    values = dict(_leaves(recipe_to_dict(recipe)))
    for name, stage in reversed(stages):
        origins = _origins(name, ())
        yield f"# {name}"
        for key, value in _leaves(recipe_to_dict(stage)):
            if value != values.get(key) and key not in ("name", "system"):
                yield f"#   {key}: {_flow(value)}  # {_origin(key, origins)}"


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are not sections, with their keys."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _part(
    config: Any, above: str, depth: int, origins: Mapping[str, str], changed: bool, texts: bool
) -> Iterator[str]:
    indent = "  " * depth
    documented: Mapping[str, str] = {}
    items = config
    if not isinstance(config, dict):
        documented = field_texts(type(config))
        items = {each.name: getattr(config, each.name) for each in fields(config)}
    for name, value in items.items():
        key = f"{above}{name}"
        parts = value.values() if isinstance(value, dict) else [value]
        nested = any(is_dataclass(each) for each in parts)
        if nested:
            inner = list(_part(value, f"{key}.", depth + 1, origins, changed, texts))
            if inner:
                yield from (f"{indent}{name}:", *inner)
            continue
        origin = _origin(key, origins)
        if changed and origin == DEFAULT:
            continue
        if texts and documented.get(name):
            yield from textwrap.wrap(
                documented[name], 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        yield f"{indent}{name}: {_flow(_plain(value))}  # {origin}"


def _plain(value: Any) -> Any:
    """Dataclasses in a list as mappings."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _origins(recipe: str, overrides: Sequence[str]) -> dict[str, str]:
    """The last layer, or the command line, that sets each key; a whole part that is set stands under its own name."""
    found, values = dict[str, str](), dict[str, Any]()
    overlays, commands = split_overrides(overrides)
    for layer in layers_of(recipe, overlays):
        content = plain(layer.content)
        values = lay_over(values, content, Recipe)
        left, keys = set(_set_keys(values)), list(_set_keys(content))
        keys += [f"{key.removesuffix('.recipe')}.model" for key in keys if re.fullmatch(r"teachers\..+\.recipe", key)]
        found = {key: origin for key, origin in found.items() if key in left or key.startswith("teachers.")}
        found |= dict.fromkeys(keys, layer.origin)
    for each in with_overrides(values, commands, Recipe)[1]:
        found |= dict.fromkeys(_set_keys(each.values), OVERRIDE)
    return found


def _set_keys(content: Any, above: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _set_keys(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _origin(key: str, origins: Mapping[str, str]) -> str:
    parts = key.split(".")
    for size in range(len(parts), 0, -1):
        if (found := origins.get(".".join(parts[:size]))) is not None:
            return found
    inner = [origin for name, origin in origins.items() if name.startswith(f"{key}.")]
    return inner[-1] if inner else DEFAULT


def _flow(value: Any) -> str:
    """One line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def keys_page() -> str:
    """The page of the documentation that lists all keys, Markdown."""
    lines = [
        "# Keys of recipes",
        "",
        "Every key that the recipe of a recogniser may have. This page is written by `retort config --all-keys`; the texts",
        "are the docstrings of `src/retort/config`. `retort config RECIPE` shows the values of a recipe and where each",
        "comes from; `NAME` is a name that the recipe chooses, `[]` an item of a list. The `kind` of a part chooses its",
        "keys: those that all kinds have are listed first, those of each kind below them. A file that changes the kind of a",
        "part starts that part afresh.",
    ]
    part = None
    for key in keys_of():
        above = key.name.rpartition(".")[0]
        if (above, key.of) != part:
            part = above, key.of
            lines += ["", f"## {above or 'The recipe'}{f', {key.of}' if key.of else ''}", ""]
        default = f"; default `{key.default}`" if key.default else ""
        values = f" Values: {key.values}." if key.values else ""
        entry = f"- `{key.name}` (`{key.kind}`{default}): {key.text}{values}"
        lines += textwrap.wrap(
            entry, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"
