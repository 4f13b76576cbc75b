from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.corpora.sentences import Sentences

TEXT = "one two\n\n  three  \nvier fünf\n"
EXPECTED = ["one two", "three", "vier fünf"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "plain"])
def test_a_text_file_is_read_line_by_line(tmp_path: Path, name: str) -> None:
    content = TEXT.encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    sentences = Sentences(tmp_path / name)
    assert list(sentences) == EXPECTED
    assert list(sentences) == EXPECTED  # again, from the start


def test_transcripts_of_a_kaldi_folder(corpus: Path) -> None:
    lines = (corpus / "test" / "text").read_text().splitlines()
    assert sorted(Sentences(corpus / "test")) == sorted(line.split(" ", 1)[1] for line in lines)


def test_it_is_found_through_the_data_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.setenv("RETORT_DATA", str(tmp_path))
    assert list(Sentences("a.txt")) == EXPECTED


def test_the_fingerprint_is_of_the_content(tmp_path: Path, corpus: Path) -> None:
    for name, text in (("a.txt", TEXT), ("b.txt", TEXT), ("c.txt", TEXT + "six\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (Sentences(tmp_path / f"{name}.txt").fingerprint() for name in "abc")
    assert a == b != c
    assert Sentences(corpus / "test").fingerprint() != Sentences(corpus / "validation").fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "contains no text"),
        ("a.txt", b" \n\n", "contains no text"),
        ("a.txt", b"good\n\xff\xfe\n", "line 2 is not UTF-8"),
        ("a.txt.xz", b"not xz", "damaged or incomplete"),
        ("a.txt.xz", lzma.compress(TEXT.encode())[:-20], "damaged or incomplete"),
        ("a.txt.gz", b"not gzip", "damaged or incomplete"),
        ("a.txt.gz", gzip.compress(TEXT.encode() * 99, mtime=0)[:-20], "damaged or incomplete"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(Sentences(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_nothing_there() -> None:
    with pytest.raises(UserError, match="no such file"):
        Sentences("nowhere/at/all.txt")
