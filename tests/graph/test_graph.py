"""The whole chain of transducers against enumeration of what it says."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_graphs
from retort.common.errors import UserError
from retort.graph.build import Graph, build_ctc_graph, build_graph
from retort.graph.fst import from_openfst

LEXICON = {
    "read": [["r", "e"], ["r", "i"]],  # two pronunciations
    "reed": [["r", "i"]],  # a homophone
    "a": [["e"]],
    "are": [["e", "r"]],  # begins with another
}
NGRAMS: tiny_graphs.Ngrams = {
    ("<s>",): (-99.0, -0.3),
    ("</s>",): (-0.9, 0.0),
    ("a",): (-0.7, -0.2),
    ("are",): (-1.1, -0.4),
    ("read",): (-0.8, -0.1),
    ("reed",): (-1.3, 0.0),
    ("<s>", "a"): (-0.4, -0.2),
    ("a", "reed"): (-0.5, 0.0),
    ("read", "</s>"): (-0.2, 0.0),
    ("<s>", "a", "reed"): (-0.1, 0.0),
}
TREE = tiny_graphs.TinyTree("eir", states=2)
LOOPS = np.linspace(0.2, 0.9, TREE.count)
SYMBOLS = ["<blank>", "e", "i", "r", "-"]


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    return tiny_graphs.write_ngrams(tmp_path / "lm.arpa", NGRAMS)


def scores_of(frames: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (frames, columns)).astype(np.float32)


def hold(graph: Graph, scores: np.ndarray, expected: dict[tiny_graphs.Words, float]) -> None:
    """The graph says exactly the sentences that fit, each for its cost."""
    found = {
        tuple(graph.words[label - 1] for label in labels): cost
        for labels, cost in tiny_graphs.pass_tokens(from_openfst(graph.fst), scores).items()
    }
    fitting = {words: cost for words, cost in expected.items() if cost < math.inf}
    longest = max(map(len, expected))
    assert {words for words in found if len(words) <= longest} == fitting.keys()
    for words, cost in fitting.items():
        assert found[words] == pytest.approx(cost, abs=2e-3), words


def test_every_sentence_costs_the_sum_of_its_parts(arpa: Path) -> None:
    graph = build_graph(LEXICON, arpa, TREE, LOOPS, silence_probability=0.3)
    scores = scores_of(10, TREE.count)
    expected = {
        words: tiny_graphs.sentence_cost(NGRAMS, words)
        + tiny_graphs.hmm_cost(words, LEXICON, TREE, LOOPS.tolist(), 0.3, scores)
        for words in tiny_graphs.sentences(sorted(LEXICON), 3)
    }
    assert sum(cost < math.inf for cost in expected.values()) > 50
    hold(graph, scores, expected)


def test_ctc_costs_the_sum_of_its_parts(arpa: Path) -> None:
    lexicon = {**LEXICON, "are": [["e", "r", "r"]]}
    graph = build_ctc_graph(lexicon, arpa, SYMBOLS)
    scores = scores_of(6, len(SYMBOLS))
    expected = {
        words: tiny_graphs.sentence_cost(NGRAMS, words)
        + tiny_graphs.ctc_cost(words, lexicon, SYMBOLS, scores)
        for words in tiny_graphs.sentences(sorted(lexicon), 3)
    }
    assert expected["are", "read"] == math.inf, (
        "four tokens, two blanks and a blank between r and r: seven frames"
    )
    hold(graph, scores, expected)


def test_ctc_words_that_begin_a_sentence_are_spelled_otherwise(arpa: Path) -> None:
    """With a space before every word but the first, as models of characters have it."""
    first = {"read": [["r", "e"], ["r", "i"]], "reed": [["r", "i"]], "a": [["e"]], "are": [["e", "r"]]}
    following = {word: [["-", *each] for each in spelled] for word, spelled in first.items()}
    graph = build_ctc_graph(following, arpa, SYMBOLS, first=first)
    scores = scores_of(7, len(SYMBOLS))
    both = following | {f"^{word}": spelled for word, spelled in first.items()}
    expected = {
        words: tiny_graphs.sentence_cost(NGRAMS, words)
        + tiny_graphs.ctc_cost([f"^{word}" for word in words[:1]] + list(words[1:]), both, SYMBOLS, scores)
        for words in tiny_graphs.sentences(sorted(first), 3)
    }
    assert 20 < sum(cost < math.inf for cost in expected.values()) < len(expected)
    hold(graph, scores, expected)
    assert graph.about.spellings[graph.words.index("a")] == [[4, 1], [1]]


SPELLINGS = st.lists(st.lists(st.sampled_from("eir"), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=6)
@given(st.lists(SPELLINGS, min_size=1, max_size=3), st.integers(0, 1000), st.sampled_from([1, 2]))
def test_random_lexicons_and_models(spellings: list[list[list[str]]], seed: int, states: int) -> None:
    lexicon = {f"w{number}": each for number, each in enumerate(spellings)}
    rng = np.random.default_rng(seed)
    ngrams = tiny_graphs.random_ngrams(list(lexicon), rng)
    tree = tiny_graphs.TinyTree("eir", states, seed)
    loops = rng.uniform(0.1, 0.9, tree.count)
    scores = scores_of(5, tree.count, seed)
    with tempfile.TemporaryDirectory() as folder:
        arpa = tiny_graphs.write_ngrams(Path(folder) / "arpa", ngrams)
        graph = build_graph(lexicon, arpa, tree, loops)
    expected = {
        words: tiny_graphs.sentence_cost(ngrams, words)
        + tiny_graphs.hmm_cost(words, lexicon, tree, loops.tolist(), 0.5, scores)
        for words in tiny_graphs.sentences(sorted(lexicon), 2)
    }
    hold(graph, scores, expected)


def test_what_the_lexicon_lacks_is_left_out_and_named(arpa: Path) -> None:
    lexicon = {"a": [["e"]], "read": [["r", "x"]]}
    assert build_graph(lexicon, arpa, TREE, LOOPS).about.left_out == ["are", "read", "reed"]
    with pytest.raises(UserError, match="none of its 4 words has a pronunciation"):
        build_graph({"A": [["e"]]}, arpa, TREE, LOOPS)


def test_a_graph_is_kept_until_what_it_is_made_of_changes(arpa: Path, tmp_path: Path) -> None:
    stages: list[tuple[int, int]] = []

    def build(lexicon: dict[str, list[list[str]]] = LEXICON, tree: tiny_graphs.TinyTree = TREE) -> Graph:
        stages.clear()
        return build_graph(
            lexicon,
            arpa,
            tree,
            LOOPS,
            folder=tmp_path / "graph",
            progress=lambda _, *step: stages.append(step),
        )

    first = build()
    assert stages == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = build()
    assert stages == []
    assert (again.words, again.about) == (first.words, first.about)
    for name in ("finals", "sources", "inputs", "outputs", "weights", "targets"):
        np.testing.assert_array_equal(*(getattr(from_openfst(each.fst), name) for each in (first, again)))
    build({**LEXICON, "unheard": [["i"]]})
    assert stages == [], "a word that the language model lacks changes nothing"
    for changed in ({"lexicon": {**LEXICON, "a": [["i"]]}}, {"tree": tiny_graphs.TinyTree("eir", 2, seed=1)}):
        assert build(**changed).about.key != first.about.key  # type: ignore[arg-type]
        assert stages[-1] == (4, 4)
    arpa.write_text(arpa.read_text().replace("-0.700000", "-0.710000"))
    build()
    assert stages[-1] == (4, 4)


def test_broken_folders_are_refused_in_one_line(arpa: Path, tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    with pytest.raises(UserError, match=r"no decoding graph \(FileNotFoundError"):
        Graph.load(folder)
    build_graph(LEXICON, arpa, TREE, LOOPS).save(folder)
    about = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps({**about, "version": 0}))
    with pytest.raises(UserError, match="a graph of version 0"):
        Graph.load(folder)
    (folder / "graph.json").write_text(json.dumps(about))
    (folder / "graph.fst").write_bytes(b"torn")
    with pytest.raises(UserError, match="no decoding graph"):
        Graph.load(folder)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("name", ["graph.fst", "words.txt", "graph.json"])
def test_a_damaged_graph_is_built_again_and_never_mapped(
    arpa: Path, tmp_path: Path, name: str, sums: bool
) -> None:
    folder = tmp_path / "graph"
    first = build_graph(LEXICON, arpa, TREE, LOOPS, folder=folder)
    if not sums:  # as an earlier version wrote it
        about = json.loads((folder / "graph.json").read_text())
        del about["sha256"]
        (folder / "graph.json").write_text(json.dumps(about))
    content = (folder / name).read_bytes()
    for share in (0.0, 0.2, 0.5, 0.8):
        damaged = bytearray(content)
        start = int(len(content) * share) // 16 * 16
        for place in range(start, min(start + 64, len(content) - 4), 4):
            damaged[place : place + 4] = b"\xff\xff\xff\x7f"
        (folder / name).write_bytes(damaged)
        if sums:
            with pytest.raises(UserError):
                Graph.load(folder)
        again = build_graph(LEXICON, arpa, TREE, LOOPS, folder=folder)
        assert again.about.key == first.about.key
        np.testing.assert_array_equal(from_openfst(again.fst).targets, from_openfst(first.fst).targets)


@pytest.mark.parametrize("loops", [LOOPS[:-1], np.zeros(TREE.count), np.full(TREE.count, np.nan)])
def test_self_loops_are_probabilities_of_the_tree(arpa: Path, loops: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        build_graph(LEXICON, arpa, TREE, loops)
    with pytest.raises(ValueError, match="silence_probability"):
        build_graph(LEXICON, arpa, TREE, LOOPS, silence_probability=1.0)


class TestFolders:
    @pytest.fixture
    def kept(self, arpa: Path, tmp_path: Path) -> Graph:
        return build_graph(LEXICON, arpa, TREE, LOOPS, folder=tmp_path / "kept")

    def test_a_linked_one_shares_its_bytes_and_is_whole_alone(self, kept: Graph, tmp_path: Path) -> None:
        for graph in (kept, Graph.load(tmp_path / "kept")):
            graph.save(tmp_path / "linked", link=True)
            graph.save(tmp_path / "copied")
            arcs = [tmp_path / name / "graph.fst" for name in ("kept", "linked", "copied")]
            assert arcs[0].samefile(arcs[1])
            assert not arcs[0].samefile(arcs[2])
            assert arcs[0].read_bytes() == arcs[2].read_bytes()
        shutil.rmtree(tmp_path / "kept")
        moved = (tmp_path / "linked").rename(tmp_path / "moved")
        hold_same(Graph.load(moved), Graph.load(tmp_path / "copied"))

    def test_what_is_written_over_one_leaves_the_other(self, kept: Graph, arpa: Path, tmp_path: Path) -> None:
        kept.save(tmp_path / "linked", link=True)
        before = (tmp_path / "linked" / "graph.fst").read_bytes()
        other = build_graph(LEXICON, arpa, TREE, LOOPS / 2, folder=tmp_path / "kept")
        assert (tmp_path / "linked" / "graph.fst").read_bytes() == before
        assert (tmp_path / "kept" / "graph.fst").read_bytes() != before
        assert Graph.load(tmp_path / "linked").about.key == kept.about.key != other.about.key
        kept.save(tmp_path / "late", link=True)  # another has taken its place: what is kept is this one
        assert not kept.is_current
        hold_same(Graph.load(tmp_path / "late"), Graph.load(tmp_path / "linked"))

    def test_what_a_process_left_that_died_is_not_written_into(self, kept: Graph, tmp_path: Path) -> None:
        before = (tmp_path / "kept" / "graph.fst").read_bytes()
        (tmp_path / "copied").mkdir()
        (tmp_path / "copied" / "graph.fst.partial").hardlink_to(tmp_path / "kept" / "graph.fst")
        build_graph({"a": [["e"]]}, tmp_path / "lm.arpa", TREE, LOOPS).save(tmp_path / "copied")
        assert (tmp_path / "kept" / "graph.fst").read_bytes() == before

    def test_where_there_are_no_links_it_is_copied(
        self, kept: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "link", refuse)
        kept.save(tmp_path / "copied", link=True)
        assert not (tmp_path / "kept" / "graph.fst").samefile(tmp_path / "copied" / "graph.fst")
        hold_same(Graph.load(tmp_path / "copied"), kept)

    def test_one_that_is_nowhere_is_written(self, arpa: Path, tmp_path: Path) -> None:
        graph = build_graph(LEXICON, arpa, TREE, LOOPS)
        assert graph.folder is None
        graph.save(tmp_path / "copied", link=True)
        hold_same(Graph.load(tmp_path / "copied"), graph)

    def test_those_of_ctc_lie_by_their_key(self, arpa: Path, tmp_path: Path) -> None:
        made = build_ctc_graph(LEXICON, arpa, SYMBOLS, folder=tmp_path / "graphs")
        assert made.folder == tmp_path / "graphs" / made.about.key
        other = build_ctc_graph(LEXICON, arpa, SYMBOLS, first=LEXICON, folder=tmp_path / "graphs")
        assert {each.name for each in (tmp_path / "graphs").iterdir()} == {made.about.key, other.about.key}
        output: list[str] = []
        again = build_ctc_graph(
            LEXICON, arpa, SYMBOLS, folder=tmp_path / "graphs", progress=lambda stage, *_: output.append(stage)
        )
        assert (again, output) == (replace(made, fst=again.fst), [])


def hold_same(first: Graph, second: Graph) -> None:
    assert (first.words, first.about) == (second.words, second.about)
    one, other = from_openfst(first.fst), from_openfst(second.fst)
    for name in ("finals", "sources", "inputs", "outputs", "weights", "targets"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
