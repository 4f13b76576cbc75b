"""The documentation and the help of every verb are written in the terms of the field, without metaphors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from retort.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "results").glob("*.md"))]

WORDS = {
    "recognise": r"hears?|heard|hearing",
    "acoustic model, encoder": r"ears?",
    "report, print, contain, determine": r"say|says|saying|said|tells?|telling|told",
    "with, next to": r"beside",
    "after": r"behind",
    "again; rescored": r"anew",
    "LM scores": r"opinions?",
    "subclasses": r"heirs?",
    "stored separately": r"(?:kept|keep|keeps) apart",
    "is, is in": r"stands?",
    "contains, is trained with": r"knows?",
    "top-1 accuracy, prediction": r"guess(?:es|ing|ed)?",
    "rescoring LM": r"judges?|judged",
}
"""What to write, and the words in whose place."""
FORBIDDEN = re.compile(rf"\b(?:{'|'.join(WORDS.values())})\b", re.IGNORECASE)
CODE = re.compile(r"^( *)```.*?^\1```|`[^`]*`", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r'"[^"\n]*"')


def forbidden(text: str) -> list[str]:
    """The words outside code and quotations, each with what surrounds it."""
    prose = QUOTED.sub(" ", CODE.sub(" ", text))
    return [
        prose[max(0, each.start() - 30) : each.end() + 30].replace("\n", " ")
        for each in FORBIDDEN.finditer(prose)
    ]


def helps(command: click.Command, name: str = "retort") -> Iterator[tuple[str, str]]:
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    if isinstance(command, click.Group):
        for key, each in command.commands.items():
            yield from helps(each, f"{name} {key}")


def test_the_check_finds_a_metaphor() -> None:
    assert len(forbidden('It is heard, `said`, "told".\n```\nbehind\n```\nand ranked anew')) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page: Path) -> None:
    assert not forbidden(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "text"), [each for each in helps(typer.main.get_command(app)) if each[1]])
def test_help(name: str, text: str) -> None:
    assert not forbidden(text)
