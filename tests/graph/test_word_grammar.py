from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import tiny_graphs
from retort.common.errors import UserError
from retort.graph.fst import from_openfst
from retort.graph.lexicon import grammar_fst, words_of

NGRAMS: tiny_graphs.Ngrams = {
    ("<s>",): (-99.0, -0.3),
    ("</s>",): (-0.9, 0.0),
    ("b",): (-0.7, -0.2),
    ("<unk>",): (-0.7, -0.2),
    ("a",): (-0.8, -0.1),
    ("<s>", "b"): (-0.5, 0.0),
}


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    return tiny_graphs.write_ngrams(tmp_path / "lm.arpa", NGRAMS)


def test_words_in_the_order_of_the_file(arpa: Path) -> None:
    assert words_of(arpa) == ["b", "a"]


def test_packed_or_not_and_silent(arpa: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = from_openfst(grammar_fst(arpa, ["a", "b"]))
    packed = arpa.with_suffix(".gz")
    packed.write_bytes(gzip.compress(arpa.read_bytes()))
    assert from_openfst(grammar_fst(packed, ["a", "b"])).inputs.tolist() == plain.inputs.tolist()
    assert set(plain.inputs.tolist()) == {1, 2, 3}
    assert capfd.readouterr() == ("", "")


def test_broken_files_are_refused_in_one_line(arpa: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        words_of(tmp_path / "none.arpa")
    whole = arpa.read_text()
    arpa.write_text(whole.replace("-0.800000", "much"))
    with pytest.raises(UserError, match=r"a graph cannot be built from it .*much") as caught:
        grammar_fst(arpa, ["a", "b"])
    assert "\n" not in str(caught.value)
    arpa.write_text(whole.replace("\\1-grams:", ""))
    with pytest.raises(UserError, match="contains no words"):
        words_of(arpa)
