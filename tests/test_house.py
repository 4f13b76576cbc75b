"""The arrows of docs/architecture.md: who may import whom, and what the command line must not wait for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import retort

ROOT = Path(retort.__file__).parent
LAYERS: tuple[tuple[str, ...], ...] = (
    ("common", "config"),
    ("audio", "text", "nn", "graph"),
    ("pretrained", "alignment", "corpora", "lm"),
    ("students", "teachers", "distill"),
    ("decoding", "streaming", "evaluation", "export", "runtime"),
    ("engine", "lm_training", "training", "info"),
    ("report", "tuning", "sweeps", "release", "serving"),
    ("verbs", "cli"),
)
"""From the ground up: a room imports rooms of its own layer and of lower ones, and rooms never in a circle."""
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
APART = {
    "decoding": {"distill", "teachers", "alignment"},
    "nn": {"audio", "text", "graph"},
    "students": {"corpora", "teachers", "distill"},
    "teachers": {"students", "distill"},
    "common": {"config"},
    "engine": {"training", "lm_training"},
}
"""What a room has nothing to do with although it is not above."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, whole: bool = True) -> set[str]:
    """Names below `retort` that a file imports; without `whole`, only those it waits for when imported."""
    tree = parsed(path)
    nodes = list(ast.walk(tree)) if whole else [node for node in tree.body if not isinstance(node, ast.If)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("retort.") for name in found if name.startswith("retort.")}


def room(module: str) -> str:
    return module.split(".")[0]


MODULES = dict(modules())


def test_every_room_has_its_layer() -> None:
    rooms = {room(name) for name in MODULES if name}
    assert rooms == HEIGHT.keys(), "a new room: give it a layer here and in docs/architecture.md"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_arrows_go_down(name: str) -> None:
    own = room(name)
    for imported in imports(MODULES[name]):
        other = room(imported)
        if other in (own, "__version__"):
            continue
        assert HEIGHT[other] <= HEIGHT[own], f"{name} imports {imported}"
        assert other not in APART.get(own, ()), f"{name} imports {imported}"


def test_rooms_do_not_import_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name:
            graph.setdefault(room(name), set()).update({room(each) for each in imports(path)} - {room(name), "__version__"})
    list(TopologicalSorter(graph).static_order())


def test_the_ground_stands_alone() -> None:
    assert imports(MODULES["common.errors"]) == set()
    for own in ("config.schema", "config.student"):
        assert {room(name) for name in imports(MODULES[own])} <= {"common", "config"}


def test_no_file_waits_for_itself() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        found = set()
        for imported in imports(path, whole=False):
            target = imported if imported in MODULES else imported.rpartition(".")[0]
            if target != name:
                found.add(target)
        graph[name] = found
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert order.index("common.errors") < order.index("training.run") < order.index("verbs.demo_run")


def test_the_check_sees_a_wrong_arrow(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    from retort.training.run import train\n    import retort.cli\n")
    assert imports(path) == {"training.run.train", "cli"}
    assert imports(path, whole=False) == set()


@pytest.mark.parametrize("path", MODULES.values(), ids=[name or "retort" for name in MODULES])
def test_a_file_has_one_subject(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


ONE_PLACE = {
    "from_pretrained": {"common.huggingface"},
    "from_config": {"common.huggingface"},
    "deserialize_item": set(),
    "from_file": {"text.teacher_pieces"},
}
"""Attributes that open what somebody else made with code of its own, and the modules that may name them."""


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_what_others_made_is_opened_in_one_place(name: str) -> None:
    for node in ast.walk(parsed(MODULES[name])):
        if isinstance(node, ast.Attribute):
            assert name in ONE_PLACE.get(node.attr, {name}), f"{name} calls {node.attr}"
        if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "trust_remote_code"):
            assert getattr(node.value, "value", None) is False, f"{name}: {node.arg}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "dill", "joblib", "marshal", "shelve"}, f"{name} imports {names}"


def loaded_by(*arguments: str) -> set[str]:
    """Top-level packages that are imported when the command has run."""
    program = (
        "import sys; sys.argv = ['retort', *sys.argv[1:]]\n"
        "from retort.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sweep", "--help"]])
def test_help_waits_for_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(*arguments)
    assert "typer" in loaded
    assert not loaded & {"torch", "lhotse", "transformers", "accelerate", "numpy", "scipy", "omegaconf"}
