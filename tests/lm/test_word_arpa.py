"""From an n-gram model over words to the graph that a hybrid system decodes with."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

import tiny_graphs
from retort.common.errors import UserError
from retort.graph.build import build_graph
from retort.graph.fst import from_openfst
from retort.lm.arpa import read_arpa
from retort.lm.factory import word_arpa
from retort.lm.ngram import NgramLM
from retort.lm.units import LmUnits
from retort.text.tokenizers import CharacterTokenizer, Tokenizer, WordTokenizer
from tiny_lms import save_ngram

TEXTS = ["a read", "a reed", "read a reed", "a", "are a", "read", "a read a strange", "a reed"]
LEXICON = {"read": [["r", "e"], ["r", "i"]], "reed": [["r", "i"]], "a": [["e"]], "are": [["e", "r"]]}
TREE = tiny_graphs.TinyTree("eir", states=2)
LOOPS = np.linspace(0.2, 0.9, TREE.count)


def make(folder: Path, tokenizer: Tokenizer, order: int = 3) -> NgramLM:
    return save_ngram(folder, tokenizer, TEXTS, order)


def test_a_decoding_graph_is_made_of_it(tmp_path: Path) -> None:
    words = WordTokenizer.train(TEXTS[:-2], 9)
    assert "strange" not in words.symbols
    model = make(tmp_path / "exp", words)
    path = word_arpa(tmp_path / "exp")
    graph = build_graph(LEXICON, path, TREE, LOOPS, silence_probability=0.3)
    assert sorted(graph.words) == sorted(LEXICON)
    assert graph.about.left_out == []
    scores = np.random.default_rng(0).normal(0, 2, (10, TREE.count)).astype(np.float32)
    found = {
        tuple(graph.words[label - 1] for label in labels): cost
        for labels, cost in tiny_graphs.pass_tokens(from_openfst(graph.fst), scores).items()
    }
    ngrams = tiny_graphs.read_ngrams(path)
    recognised = 0
    for output in tiny_graphs.sentences(sorted(LEXICON), 3):
        cost = tiny_graphs.hmm_cost(output, LEXICON, TREE, LOOPS.tolist(), 0.3, scores)
        if cost == math.inf:
            continue
        asked = tiny_graphs.sentence_cost(ngrams, output)
        # What the file says is what the model says, but that a graph may back off where it need not.
        exact = -float(model.score([words.encode(" ".join(output))])[0].double().sum())
        assert asked <= exact + 1e-3
        assert found[output] == pytest.approx(cost + asked, abs=2e-3), output
        recognised += 1
    assert recognised > 50


def test_a_missing_file_is_written_again(tmp_path: Path) -> None:
    words = WordTokenizer.train(TEXTS, 9)
    model = make(tmp_path / "exp", words)
    path = word_arpa(tmp_path / "exp" / "model")
    content = path.read_bytes()
    assert word_arpa(tmp_path / "exp") == path == tmp_path / "exp" / "model" / "lm.arpa.gz"
    path.unlink()
    assert gzip.decompress(word_arpa(tmp_path / "exp").read_bytes()) == gzip.decompress(content)
    assert [each.name for each in path.parent.glob("*arpa*")] == ["lm.arpa.gz"]
    table, left_out = read_arpa(path, words.symbols)
    assert left_out == 0
    np.testing.assert_array_equal(table.keys, model.table.keys)


def test_what_has_no_words_is_one_line(tmp_path: Path) -> None:
    make(tmp_path / "letters", CharacterTokenizer.train(TEXTS))
    make(tmp_path / "units", WordTokenizer.train(TEXTS, 9))
    LmUnits("phone", "x").save(tmp_path / "units" / "model")
    make(tmp_path / "neural", WordTokenizer.train(TEXTS, 9))
    config = tmp_path / "neural" / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "kind": "causal"}))
    for name, message in (
        ("letters", "its kind is ngram, over characters"),
        ("units", "its kind is ngram, over phones"),
        ("neural", "its kind is causal, over words"),
        ("nowhere", "no n-gram model here"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            word_arpa(tmp_path / name)
        assert "tokenizer.kind words" in str(caught.value)
        assert "\n" not in str(caught.value)
