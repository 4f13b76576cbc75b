from __future__ import annotations

import ast
from pathlib import Path

import pytest

import retort
from retort.common.json_reader import DEEPEST, parse_json, read_json

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("text", [DEEP, DEEP.encode(), '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000])
def test_what_is_nested_too_deeply_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json(text)


def test_what_is_wide_or_nested_a_little_is_read(tmp_path: Path) -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    wide = [{"a": [1]} for _ in range(1000)]
    (tmp_path / "a.json").write_text("\ufeff" + repr(wide).replace("'", '"'), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == wide
    assert parse_json('"' + "[" * 1000 + '"') == "[" * 1000


@pytest.mark.parametrize("text", ["", "{", "[1", b"\xff\xfe", b"\x80", "1" * 5000])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_no_other_file_reads_json() -> None:
    for path in Path(retort.__file__).parent.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))
        readers = [
            node
            for node in calls
            if node.attr in ("loads", "load") and getattr(node.value, "id", "") == "json"
        ]
        assert not readers or path.name == "json_reader.py", path
