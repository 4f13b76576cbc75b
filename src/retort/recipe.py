"""Reading recipes: YAML over the defaults of `config.py`, `a.b=c` over YAML. Unknown keys are errors.

A recipe is one YAML file. `base: NAME` at its top takes another recipe first.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retort.config import (
    CHOICES,
    ROW_CHOICES,
    TEACHER_CHOICES,
    Recipe,
    SpokenConfig,
    StudentConfig,
)
from retort.errors import UserError

T = TypeVar("T")


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
        UserError: no such recipe, an unknown key or a value of the wrong type.
    """
    merged = OmegaConf.structured(schema)
    for path in _with_bases(_find(recipe)):
        try:
            merged = OmegaConf.merge(merged, _read_yaml(path))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise _explain(error, str(path), schema) from None
    for override in overrides:
        _lay_over(merged, override, schema)
    return _to_object(merged, recipe, schema)


def recipe_from_dict(values: dict[str, Any], where: str) -> Recipe:
    """A recipe that was saved with :func:`recipe_to_dict`."""
    return read_dict(Recipe, values, where)


def read_dict(schema: type[T], values: dict[str, Any], where: str) -> T:
    """The same for any kind of recipe."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise _explain(error, where, schema) from None
    return _to_object(merged, where, schema)


def recipe_to_dict(recipe: object) -> dict[str, Any]:
    """What JSON can hold of a recipe of any kind."""
    result = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def check_choices(recipe: object, choices: Mapping[str, tuple[str, ...]], where: str) -> None:
    """Check the values at the dotted keys of `choices`.

    Raises:
        UserError: with the key, its value and what it may be.
    """
    for key, allowed in choices.items():
        value: object = recipe
        for part in key.split("."):
            value = getattr(value, part)
        _choose(key, value, allowed, where)


def check_recipe(recipe: Recipe, where: str) -> None:
    """Cross-checks between fields.

    Raises:
        UserError: with the key, its value and what it may be.
    """

    def choose(key: str, value: object, choices: tuple[str, ...]) -> None:
        _choose(key, value, choices, where)

    check_choices(recipe, CHOICES, where)
    for name, teacher in recipe.teachers.items():
        for key, choices in TEACHER_CHOICES.items():
            choose(f"teachers.{name}.{key}", getattr(teacher, key), choices)
    for index, row in enumerate(recipe.distill):
        for key, choices in ROW_CHOICES.items():
            choose(f"distill[{index}].{key}", getattr(row, key), choices)
        choose(f"distill[{index}].teacher", row.teacher, tuple(recipe.teachers))
    _check_soft_labels(recipe, where)
    if recipe.tokenizer.kind == "bpe" and recipe.tokenizer.size is None:
        raise UserError(
            "tokenizer.kind is bpe without tokenizer.size", where=where, remedy="Add size, e.g. 300"
        )
    if recipe.tokenizer.kind == "init" and not (recipe.training.init or recipe.training.warm_start):
        raise UserError(
            "tokenizer.kind is init without a model to start from",
            where=where,
            remedy="Set training.init or training.warm_start, or choose another kind",
        )
    if recipe.tokenizer.kind == "teacher":
        choose("tokenizer.teacher", recipe.tokenizer.teacher, tuple(recipe.teachers))
    if recipe.augment.noise and recipe.features.storage == "disk":
        raise UserError(
            "augment.noise needs the wave at each visit", where=where, remedy="Set features.storage: online"
        )
    if recipe.student.faithful and recipe.student.encoder.positions != "relative":
        raise UserError(
            "student.faithful needs the reference's positions",
            where=where,
            remedy="Set student.encoder.positions: relative, or faithful: false",
        )
    if recipe.training.init and recipe.training.warm_start:
        raise UserError(
            "training.init and training.warm_start exclude each other", where=where, remedy="Set one of them"
        )
    if len(set(recipe.augment.speeds)) < len(recipe.augment.speeds) or not recipe.augment.speeds:
        raise UserError(
            f"augment.speeds is {recipe.augment.speeds}", where=where, remedy="Name different speeds"
        )
    _check_decoder(recipe, where)
    _check_sizes(recipe.student, where)
    _check_dropout(recipe.student, where)
    _check_spoken(recipe.data.spoken, where)


def _check_spoken(spoken: SpokenConfig, where: str) -> None:
    for name in ("words", "rate", "pitch", "snr"):
        values = getattr(spoken, name)
        if len(values) != 2 or values[0] > values[1]:
            raise UserError(
                f"data.spoken.{name} is {list(values)}", where=where, remedy="Give the lowest and the highest"
            )
    if spoken.sentences and not spoken.voices:
        raise UserError(
            "data.spoken.sentences without a voice", where=where, remedy="Set data.spoken.voices, e.g. 16"
        )


def _check_soft_labels(recipe: Recipe, where: str) -> None:
    for name, teacher in recipe.teachers.items():
        if teacher.kind == "causal_lm" and teacher.topk is None:
            raise UserError(
                f"teachers.{name} is a causal_lm without topk",
                where=where,
                remedy="Set topk, e.g. 10: it gives soft labels alone",
            )
        if teacher.topk is not None and teacher.topk < 1:
            raise UserError(f"teachers.{name}.topk is {teacher.topk}", where=where, remedy="Choose 1 or more")
    for index, row in enumerate(recipe.distill):
        soft = row.loss == "soft_label"
        if soft != (recipe.teachers[row.teacher].topk is not None):
            raise UserError(
                f"distill[{index}].loss is {row.loss}, teacher {row.teacher} {'lacks' if soft else 'has'} topk",
                where=where,
                remedy="soft_label goes with a teacher with topk, the other losses with one without",
            )
        if soft and row.tap != "tokens":
            raise UserError(
                f"distill[{index}] lays soft_label on tap '{row.tap}'", where=where, remedy="Set tap: tokens"
            )
        if not row.temperature > 0.0:
            raise UserError(
                f"distill[{index}].temperature is {row.temperature}", where=where, remedy="Choose above 0"
            )


def _check_decoder(recipe: Recipe, where: str) -> None:
    decoder = recipe.student.decoder
    if decoder.output == "plm" and recipe.tokenizer.kind != "teacher":
        raise UserError(
            "student.decoder.output is plm, but the tokens are not a PLM's",
            where=where,
            remedy="Set tokenizer.kind: teacher, and tokenizer.teacher",
        )
    if (decoder.output == "plm") != (decoder.output_dim is not None):
        raise UserError(
            f"student.decoder.output is {decoder.output}, output_dim is {decoder.output_dim}",
            where=where,
            remedy="State output_dim, the width of its embeddings, for plm and for nothing else",
        )
    if decoder.init_layers and len(decoder.init_layers) != decoder.layers:
        raise UserError(
            f"student.decoder.init_layers names {len(decoder.init_layers)} for {decoder.layers} layers",
            where=where,
            remedy="Name one for each, or none",
        )


def _check_dropout(student: StudentConfig, where: str) -> None:
    for part in ("encoder", "cif", "decoder"):
        for name, value in vars(getattr(student, part)).items():
            if name.endswith("dropout") and not 0.0 <= value < 1.0:
                raise UserError(
                    f"student.{part}.{name} is {value}", where=where, remedy="Choose from 0 to below 1"
                )


def _choose(key: str, value: object, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UserError(f"{key} is '{value}'", where=where, remedy=f"Choose one of {', '.join(choices)}")


def _check_sizes(student: StudentConfig, where: str) -> None:
    encoder = student.encoder
    for key, part in (("encoder", encoder), ("decoder", student.decoder)):
        if part.dim % part.heads or (part.dim // part.heads) % 2:
            raise UserError(
                f"student.{key}.dim {part.dim} over {part.heads} heads is not an even number",
                where=where,
                remedy="Choose dim a multiple of 2 x heads",
            )
    for key, kernel in (("encoder", encoder.kernel), ("cif", student.cif.kernel)):
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"student.{key}.kernel is {kernel}", where=where, remedy="Choose an odd number")
    pooled = encoder.pool_after
    if len(set(pooled)) < len(pooled) or not all(1 <= layer <= encoder.layers for layer in pooled):
        raise UserError(
            f"student.encoder.pool_after is {list(pooled)}",
            where=where,
            remedy=f"Name different layers from 1 to {encoder.layers}",
        )
    if student.frontend.layers not in (1, 2):
        raise UserError("student.frontend.layers must be 1 or 2", where=where)


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


def _with_bases(path: Path) -> list[Path]:
    """The recipe's file after the files it is based on, outermost base first."""
    chain = [path]
    while "base" in (content := _read_yaml(chain[0], keep_base=True)):
        base = _find(str(content["base"]), chain[0].parent)
        if base.resolve() in [each.resolve() for each in chain]:
            raise UserError("base: goes in a circle", where=path)
        chain.insert(0, base)
    return chain


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
    except OmegaConfBaseException as error:
        raise _explain(error, where, schema) from None
    assert isinstance(result, schema)
    return result


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
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise _explain(error, where, schema) from None


def _explain(error: Exception, where: str, schema: type) -> UserError:
    key = getattr(error, "full_key", None) or ""
    message = _one_line(error)
    if ("not in" in message or "is not a" in message) and "subclass" in message:
        return UserError(f"a whole part is set to a single value ({message})", where=where)
    if "not in" in message and key:
        leaf = key.split(".")[-1]
        known = sorted({name for cls in _dataclasses(schema) for name in cls.__dataclass_fields__})
        near = difflib.get_close_matches(leaf, known, n=1)
        return UserError(
            f"unknown key '{key}'",
            where=where,
            remedy=f"Did you mean '{near[0]}'?" if near else f"See {_source(schema)} for the keys",
        )
    return UserError(f"{key}: {message}" if key else message, where=where)


def _source(schema: type) -> str:
    return f"{schema.__module__.replace('.', '/')}.py"


def _dataclasses(root: type) -> list[Any]:
    """The schema and those of its parts, within lists and mappings too."""
    found: list[Any] = [root]
    for hint in get_type_hints(root).values():
        for each in (hint, *get_args(hint)):
            if is_dataclass(each) and isinstance(each, type):
                found += [inner for inner in _dataclasses(each) if inner not in found]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
