"""The README says what is there: its commands, recipes, names and links."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from retort.cli import app
from retort.config.loading import load_recipe, recipe_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACEHOLDERS = {"RECIPE", "SWEEP", "KIND", "SRC", "OUT", "EXP", "CUTS", "SCORE", "FILE", "N"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def codes() -> list[str]:
    """What is between backticks in the text."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands() -> list[list[str]]:
    """Every `retort ...` of the shell blocks and of the code within the text, as words without brackets."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += codes()
    found = [shlex.split(line.replace("[", " ").replace("]", " "), comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == ["retort"]]


def verbs() -> dict[str, Any]:
    """The commands of the CLI by name, as click or typer's copy of it has them."""
    found: dict[str, Any] = vars(get_command(app))["commands"]
    return found


def options_of(verb: str) -> set[str]:
    assert verb in verbs(), f"no verb `retort {verb}`"
    return {name for each in verbs()[verb].params for name in each.opts if name.startswith("--")}


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 10
    assert {"train", "transcribe", "prepare"} <= {words[0] for words in commands()}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_understood(words: list[str]) -> None:
    verb, *rest = words
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert options <= options_of(verb)
    if not PLACEHOLDERS & {word.rstrip(".") for word in rest}:  # a whole one: its arguments must fit too
        verbs()[verb].make_context(verb, list(rest))


def test_options_named_alone_exist() -> None:
    named = set(re.findall(r"`(--[a-z]+)(?: N)?`", README))
    assert named
    assert named <= options_of("transcribe") | options_of("evaluate")


def test_every_verb_is_reported() -> None:
    table = set(re.findall(r"^\| `retort ([a-z]+)", README, flags=re.MULTILINE))
    assert table == set(verbs())


def test_recipes_exist() -> None:
    rooms = "|".join(sorted({name.split("/")[0] for name in recipe_names()} - {"demo"}))
    named = set(re.findall(rf"[`\s]((?:{rooms})/[\w-]+)", README))
    named -= set(re.findall(r"name=([\w/-]+)", README))
    assert named
    assert named <= set(recipe_names())


def test_settings_exist() -> None:
    trainings = [words[1:] for words in commands() if words[0] == "train" and "RECIPE" not in words]
    assert any(len(words) > 1 for words in trainings)
    for recipe, *overrides in trainings:
        load_recipe(recipe, overrides)


def test_the_rows_are_a_recipe(tmp_path: Path) -> None:
    (rows,) = blocks("yaml")
    path = tmp_path / "readme.yaml"
    path.write_text(f"name: readme\nteachers: {{bert: {{}}}}\n{rows}")
    assert [row.loss for row in load_recipe(str(path)).distill] == ["contrastive", "regression"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)[^)]*\)", README))))
def test_linked_documents_exist(target: str) -> None:
    assert (ROOT / target).is_file()


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^make ([a-z]+)$", "\n".join([*blocks("sh"), *codes()]), flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    there = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets <= there


@pytest.mark.parametrize("block", blocks("python"))
def test_the_names_of_a_python_block_exist(block: str) -> None:
    tree = ast.parse(block)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(
                {name.asname or name.name: importlib.import_module(name.name) for name in node.names}
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
    assert modules or "from" in block
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert callable(getattr(modules[node.value.id], node.attr))


def test_the_attributes_of_a_transcript_exist() -> None:
    from dataclasses import fields

    from retort.decoding.recogniser import Recogniser
    from retort.decoding.transcript import TimedText, Transcript

    (block,) = (each for each in blocks("python") if "transcribe" in each)
    assert hasattr(Recogniser, "transcribe")
    reported = set(re.findall(r"result\.(\w+)", block))
    assert reported
    assert reported <= {field.name for field in fields(Transcript)}
    (names,) = re.findall(r"TimedText\(([^)]+)\)", block)
    assert names.split(", ") == [field.name for field in fields(TimedText)]
