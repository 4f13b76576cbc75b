"""The layers of a recipe: what its files set, in the order in which it is merged over the defaults.

A recipe is named by the path of its file below `recipes/`, by the name of a stage or a variant that a file of the same
folder lists, or by the path of a YAML file, `FILE.yaml` or `FILE.yaml:STAGE`; any of them may be followed by overlays:
`speechocean762/cif +encoder/zipformer`. `docs/recipes.md` describes `base`, `stages`, `variants` and overlays.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from retort.common.errors import UserError

OVERLAYS = "overlays"
"""Folder of the packaged overlays, below that of the recipes."""
NOT_INHERITED = ("name", "system")
"""Keys that belong to the recipe that sets them, not to those that are based on it."""
FROM_PATH = "path"
ALL_STAGES = "all"
_FILE = re.compile(r"(?P<file>.+\.ya?ml)(?::(?P<entry>[\w.-]+))?")


@dataclass(frozen=True)
class Layer:
    """Values that are merged into a recipe, and their origin as text."""

    origin: str
    content: DictConfig


@dataclass(frozen=True)
class Reference:
    """What the name of a recipe refers to.

    Attributes:
        file: the YAML file.
        entry: the stage or variant of this file; empty for the recipe of the file itself.
        overlays: overlays in the order in which they are applied.
    """

    file: Path
    entry: str = ""
    overlays: tuple[str, ...] = ()


def recipes_folder() -> Path:
    """The folder of the packaged recipes."""
    return Path(str(resources.files("retort") / "recipes"))


@cache
def packaged() -> dict[str, Reference]:
    """Everything that is packaged except overlays, by name: recipes, their stages and variants, sweeps."""
    found = {}
    for path in sorted(recipes_folder().rglob("*.yaml")):
        name = title(path)
        if not name.startswith(f"{OVERLAYS}/"):
            found[name] = Reference(path)
            for entry in _entries(_read_yaml(path)):
                found[name.rpartition("/")[0] + f"/{entry}"] = Reference(path, entry)
    return dict(sorted(found.items()))


def overlay_names() -> list[str]:
    """Names of the packaged overlays, such as `encoder/zipformer`."""
    folder = recipes_folder() / OVERLAYS
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def title(path: Path) -> str:
    """The name of a packaged file, or the path of another one."""
    folder = recipes_folder()
    return str(path.relative_to(folder).with_suffix("")) if path.is_relative_to(folder) else str(path)


def summary(name: str) -> str:
    """The first sentence of the comment of a packaged recipe or `+OVERLAY`; empty without a comment."""
    if name.startswith("+"):
        return _first_sentence(recipes_folder() / OVERLAYS / f"{name[1:]}.yaml")
    reference = packaged()[name]
    return _first_sentence(reference.file, reference.entry)


def refer(recipe: str, folder: Path | None = None) -> Reference:
    """Find the file of a recipe; a relative path is resolved from `folder` first.

    Raises:
        UserError: no such recipe, file, stage or variant.
    """
    name, *overlays = (part.strip() for part in recipe.split(" +"))
    if matched := _FILE.fullmatch(name):
        file, entry = _file(matched["file"], folder), matched["entry"] or ""
        if entry and entry not in (known := _entries(_read_yaml(file))):
            raise UserError(
                f"has no stage or variant {entry}", where=file, remedy=f"It has {', '.join(known) or 'none'}"
            )
        return Reference(file, entry, tuple(overlays))
    if name not in packaged():
        near = difflib.get_close_matches(name, packaged(), n=1)
        hint = f"Did you mean {near[0]}?" if near else "`retort recipes` lists them"
        raise UserError("no such recipe", where=name, remedy=hint)
    found = packaged()[name]
    return Reference(found.file, found.entry, tuple(overlays))


def layers_of(recipe: str, overlays: Sequence[str] = ()) -> list[Layer]:
    """The layers of a recipe, the outermost base first; the last one sets `name` and `system`.

    Args:
        overlays: overlays after those that `recipe` names itself, without `+`.

    Raises:
        UserError: no such recipe or overlay, a file is not valid YAML, or `base` is circular.
    """
    reference = refer(recipe)
    reference = Reference(reference.file, reference.entry, (*reference.overlays, *overlays))
    layers = _layers_of_file(reference.file, reference.entry)
    names = _names(reference, layers)
    layers = [Layer(each.origin, _without(each.content, NOT_INHERITED)) for each in layers]
    opened = [_Overlay(name) for name in reference.overlays]
    for overlay in opened:
        layers += overlay.layers(layers, reference.entry)
    layers += _earlier_stages(layers, opened)
    return [*layers, *names]


def experiment_name(recipe: str) -> str:
    """Name of the experiment of a recipe: from its path, unless the file sets another name."""
    return str(_last(layers_of(recipe), "name"))


def _layers_of_file(file: Path, entry: str, above: tuple[tuple[Path, str], ...] = ()) -> list[Layer]:
    """The layers of a file, or of a stage or variant in it, with those of its bases, each of them once."""
    if (file.resolve(), entry) in above:
        raise UserError("base: is circular", where=file)
    above = (*above, (file.resolve(), entry))
    content = _read_yaml(file)
    layers: list[Layer] = []
    named = content.get("base")
    for name in named if isinstance(named, ListConfig) else [named] if named else []:
        base = refer(str(name), file.parent)
        for each in _layers_of_file(base.file, base.entry, above):
            inherited = Layer(each.origin, _without(each.content, NOT_INHERITED))
            layers += [inherited] if inherited not in layers else []
    stages, own = list(content.get("stages", {})), _without(content, ("base", "stages", "variants"))
    if stages and entry not in stages:
        layers.append(_warm_start(f"stages of {title(file)}", _sibling(file, stages[-1])))
    layers.append(Layer(title(file), _without(own, NOT_INHERITED) if entry else own))
    if entry in stages:
        before = stages[stages.index(entry) - 1] if entry != stages[0] else ""
        layers.append(_warm_start(f"stages of {title(file)}", _sibling(file, before) if before else ""))
    if entry:
        changes = _entries(content)[entry]
        if isinstance(changes, str):  # a name for overlays
            opened = [_Overlay(name.strip()) for name in f" {changes}".split(" +")[1:]]
            for overlay in opened:
                layers += overlay.layers(layers, entry)
            layers += _earlier_stages(layers, opened)
        else:
            kind = "stage" if entry in stages else "variant"
            layers.append(Layer(f"{title(file)}, {kind} {entry}", OmegaConf.create(changes or {})))
    return layers


class _Overlay:
    """An overlay: changes to any recipe, and if it has `stages`, to the stages before it as well."""

    def __init__(self, name: str) -> None:
        self.name = name
        if _FILE.fullmatch(name):
            self.file = _file(name, None)
        else:
            self.file = recipes_folder() / OVERLAYS / f"{name}.yaml"
            if name not in overlay_names():
                near = difflib.get_close_matches(name, overlay_names(), n=1)
                hint = f"Did you mean +{near[0]}?" if near else f"Overlays: {', '.join(overlay_names())}"
                raise UserError("no such overlay", where=f"+{name}", remedy=hint)
        content = _read_yaml(self.file, overlay=True)
        stages = content.get("stages")
        self.content = _without(content, ("stages",))
        self.reaches_stages = stages is not None
        self.stages: dict[str, Any] = dict(stages) if isinstance(stages, DictConfig) else {}
        """Changes by name of the stage; None for a stage that is left out."""

    def layers(self, before: Sequence[Layer], entry: str) -> Iterator[Layer]:
        """The changes to a recipe, or to the stage `entry`, whose layers so far are `before`; rows are added to its rows."""
        content = self.content.copy()
        if "distill" in content:
            content["distill"] = [*(_last(before, "distill") or []), *content["distill"]]
        yield Layer(f"overlay {self.name}", content)
        if self.stages.get(entry):
            yield Layer(f"overlay {self.name}, stage {entry}", self.stages[entry])


def _earlier_stages(layers: Sequence[Layer], overlays: Sequence[_Overlay]) -> Iterator[Layer]:
    """The warm start of a recipe with overlays that change the stages before it as well."""
    reaching = [each for each in overlays if each.reaches_stages]
    start = _last(layers, "training.warm_start")
    if not reaching or not start:
        return
    left_out = {name for each in reaching for name, changes in each.stages.items() if changes is None}
    while (reference := refer(start)).entry in left_out:
        start = _last(_layers_of_file(reference.file, reference.entry), "training.warm_start")
        if not start:
            yield _warm_start(", ".join(f"overlay {each.name}" for each in reaching), "")
            return
    added = "".join(f" +{each.name}" for each in reaching if each.name not in refer(start).overlays)
    yield _warm_start(", ".join(f"overlay {each.name}" for each in reaching), start + added)


def _names(reference: Reference, layers: Sequence[Layer]) -> Iterator[Layer]:
    """Name and system of the recipe, from its path where it does not set them, with a suffix for each overlay."""
    file, own = reference.file, layers[-1]
    parts = file.relative_to(recipes_folder()) if file.is_relative_to(recipes_folder()) else _below_here(file)
    path = (parts.with_name(reference.entry) if reference.entry else parts.with_suffix("")).as_posix()
    path = path.removeprefix("sweeps/")
    suffix = "".join(
        "+" + name.removesuffix(".yaml").removesuffix(".yml").strip("./").replace("/", "-")
        for name in reference.overlays
    )
    for key, value in (("name", path), ("system", path.rpartition("/")[2])):
        stated = own.content.get(key)
        origin = FROM_PATH if stated is None else own.origin
        given = value if stated is None else stated
        named = f"{given}{suffix}" if suffix else given
        yield Layer(origin, OmegaConf.create({key: named}))


def _below_here(file: Path) -> Path:
    """The path below the working directory, or the name of a file elsewhere."""
    here, file = Path.cwd(), file.absolute()
    return file.relative_to(here) if file.is_relative_to(here) and ".." not in file.parts else Path(file.name)


def _sibling(file: Path, entry: str) -> str:
    """How to refer to a stage of a file."""
    name = title(file)
    return f"{file}:{entry}" if name == str(file) else f"{name.rpartition('/')[0]}/{entry}"


def _entries(content: DictConfig) -> dict[str, Any]:
    """Stages and variants of a file, by name."""
    return {str(name): each for key in ("stages", "variants") for name, each in content.get(key, {}).items()}


def _warm_start(origin: str, recipe: str) -> Layer:
    return Layer(origin, OmegaConf.create({"training": {"warm_start": recipe}}))


def _last(layers: Sequence[Layer], key: str) -> Any:
    """The value that the last layer with this key sets; None if none does."""
    for layer in reversed(layers):
        if (
            isinstance(layer.content, DictConfig)
            and (found := OmegaConf.select(layer.content, key)) is not None
        ):
            return found
    return None


def _without(content: DictConfig, keys: Sequence[str]) -> DictConfig:
    """The content without keys; itself if it has none of them, because it is never modified."""
    if not any(key in content for key in keys):
        return content
    return OmegaConf.masked_copy(content, [str(key) for key in content if key not in keys])


def _file(path: str, folder: Path | None) -> Path:
    for each in ([folder / path] if folder else []) + [Path(path)]:
        if each.is_file():
            return each
    raise UserError("no such file", where=path, remedy="Give a recipe's name or the path of a YAML file")


def _read_yaml(path: Path, *, overlay: bool = False) -> DictConfig:
    try:
        state = path.stat()
        content = _parsed(path, state.st_mtime_ns, state.st_size)
    except Exception as error:  # yaml has many exception types; the text contains line and column
        raise UserError(f"not valid YAML ({one_line(error)})", where=path) from None
    if not isinstance(content, DictConfig):
        raise UserError("is not a mapping of keys to values", where=path)
    for key in ("stages", "variants"):
        value = content.get(key, {})
        if not isinstance(value, DictConfig | dict) and not (overlay and value == ALL_STAGES):
            raise UserError(f"{key} is not a mapping of names to changes", where=path)
    return content


@lru_cache(512)
def _parsed(path: Path, changed: int, size: int) -> DictConfig | ListConfig:
    """The content of a file, parsed again when the file has changed. It must not be modified."""
    return OmegaConf.load(path)


def _first_sentence(file: Path, entry: str = "") -> str:
    """The first sentence of the comment at the top of a file, or above a stage or variant in it."""
    comment: list[str] = []
    section = ""
    for line in file.read_text("utf-8").splitlines():
        if line[:1].isalpha():
            section = line.partition(":")[0]
        if entry and section in ("stages", "variants") and line.startswith(f"  {entry}:"):
            break
        if line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif entry:
            comment = []
        else:
            break
    return re.split(r"(?<!et al)\. (?=[A-Z`])|[:;] ", " ".join(comment), maxsplit=1)[0].rstrip(".")


def one_line(error: Exception) -> str:
    """The first line of an error's text."""
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
