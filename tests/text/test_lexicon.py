"""Lexicons in the style of the CMU dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.common.errors import UserError
from retort.text.lexicon import Lexicon, read_lexicon

CONTENT = """;;; a comment
A\tAH0
A(2)  EY1
READ R EH1 D # past
READ R IY1 D
READ(3) R IY0 D

(2) T UW1
DON'T D OW1 N T
拼 p in1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lexicon.txt"
    path.write_text(CONTENT, encoding="utf-8")
    return path


def test_stress_is_stripped_and_what_became_equal_is_one(path: Path) -> None:
    lexicon = read_lexicon(path)
    assert lexicon["A"] == (("AH",), ("EY",))
    assert lexicon["READ"] == (("R", "EH", "D"), ("R", "IY", "D"))
    assert lexicon["拼"] == (("p", "in1"),)  # a tone is no stress
    assert lexicon["(2)"] == (("T", "UW"),)
    assert lexicon.words == ("A", "READ", "(2)", "DON'T", "拼")
    assert lexicon.phones == ("AH", "D", "EH", "EY", "IY", "N", "OW", "R", "T", "UW", "in1", "p")
    assert "READ" in lexicon
    assert "read" not in lexicon
    assert lexicon.missing(["X", "A", "B", "X"]) == ["X", "B"]


def test_stress_is_kept(path: Path) -> None:
    lexicon = read_lexicon(path, stress="keep")
    assert lexicon["READ"] == (("R", "EH1", "D"), ("R", "IY1", "D"), ("R", "IY0", "D"))


def test_parts_and_more() -> None:
    lexicon = Lexicon({"a": [["A"]], "b": [["B"], ["A", "B"]]})
    assert dict(lexicon.only(["b", "c"])) == {"b": (("B",), ("A", "B"))}
    assert dict(lexicon.extended({"a": [["C"]], "c": [["C"]]})) == {**lexicon, "c": (("C",),)}
    with pytest.raises(UserError, match="no word"):
        lexicon.only(["c"])


PHONES = st.lists(st.sampled_from(["A", "B", "ah", "i4"]), min_size=1, max_size=4)


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text("abc'", min_size=1, max_size=3), st.lists(PHONES, min_size=1, max_size=3), min_size=1
    )
)
def test_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, list[list[str]]]
) -> None:
    path = tmp_path_factory.mktemp("lexicon") / "l"
    path.write_text(str(Lexicon(entries)))
    assert read_lexicon(path) == Lexicon(entries)


def test_bad_lexicons_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "l"
    for content, what in (
        (b"", "contains no word"),
        (b";;; only\n\n", "contains no word"),
        (b"A AH\nB\n", "line 2: 'B' has no phones"),
        (b"A # comment\n", "line 1: 'A' has no phones"),
        (b"\xff\xfe", "not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=what):
            read_lexicon(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_lexicon(tmp_path)
    with pytest.raises(UserError, match="without phones"):
        Lexicon({"a": [[]]})
    with pytest.raises(UserError, match="no word"):
        Lexicon({"a": []})
