"""kaldi-decoder on tiny graphs against token passing without a beam."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_graphs
from retort.common.errors import BadUtterance, UserError
from retort.graph.build import About, Graph, build_ctc_graph, build_graph
from retort.graph.fst import Fst, from_openfst, join, to_openfst
from retort.graph.search import GraphSearch
from retort.graph.word_times import WordTimes

LEXICON = {"read": [["r", "e"], ["r", "i"]], "reed": [["r", "i"]], "a": [["e"]], "are": [["e", "r", "r"]]}
TREE = tiny_graphs.TinyTree("eir", states=2)
LOOPS = np.linspace(0.2, 0.9, TREE.count)
SYMBOLS = ["<blank>", "e", "i", "r"]
WIDE = {"beam": 1e4, "max_active": 10**6, "lattice_beam": 1e3}


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ngrams = tiny_graphs.random_ngrams(sorted(LEXICON), np.random.default_rng(0))
    return tiny_graphs.write_ngrams(tmp_path_factory.mktemp("lm") / "lm.arpa", ngrams)


@pytest.fixture(scope="module")
def graph(arpa: Path) -> Graph:
    return build_graph(LEXICON, arpa, TREE, LOOPS)


def scores_of(frames: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (frames, columns)).astype(np.float32)


def plain(fst: Fst, inputs: int) -> Graph:
    """A graph of whatever arcs: its words are spelled by any column, in any number of frames."""
    spellings = [[[0] * count for count in range(1, 6)]] * 3
    about = About(inputs, spellings, [[0, 0, column] for column in range(inputs)], 0, False, [], "")
    return Graph(to_openfst(fst), ["x", "y", "z"], about)


STATE = st.integers(0, 4)
LABELS = st.tuples(st.integers(0, 2), st.integers(0, 3))
ARCS = st.lists(st.tuples(STATE, LABELS, st.floats(0, 2, width=16), STATE), min_size=3, max_size=16)


@settings(max_examples=40)
@given(ARCS, st.integers(1, 5), st.integers(0, 99))
def test_random_graphs(arcs: list[tuple[int, tuple[int, int], float, int]], frames: int, seed: int) -> None:
    # Without input only upwards, or it went on for ever; words on arcs that take a frame, so that they fit their path.
    rows = [
        (source, label, output if label else 0, weight, target)
        for source, (label, output), weight, target in arcs
        if label or source < target
    ]
    fst = Fst(
        0,
        np.array([np.inf, np.inf, np.inf, 0.5, 0.0], np.float32),
        *join(tuple(zip(*(rows or [(0, 1, 1, 0.0, 4)])))),
    )
    scores = scores_of(frames, 2, seed)
    search = GraphSearch(plain(fst, 2), acoustic_scale=0.5, **WIDE)
    expected = tiny_graphs.pass_tokens(fst, scores, scale=0.5)
    if not expected:
        with pytest.raises(BadUtterance, match="no path"):
            search.search(scores)
        with pytest.raises(BadUtterance, match="no path"):
            search.alternatives(scores, 2)
        return
    best = search.search(scores)
    assert best.cost == pytest.approx(min(expected.values()), abs=1e-3)
    found = search.alternatives(scores, 1000)
    assert [each.cost for each in found] == pytest.approx(sorted(expected.values()), abs=1e-3)
    for each in found:
        result = tuple(" xyz".index(word.text) for word in each.words)
        assert each.cost == pytest.approx(expected[result], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_words_have_the_frames_of_their_phones(graph: Graph, seed: int) -> None:
    """Scores that leave no doubt: the frames of each word are those that they were made for."""
    rng = np.random.default_rng(seed)
    result = [("a", ["e"]), ("read", ["r", "e"]), ("reed", ["r", "i"])]
    phones, expected, frame = [], [], 0
    for place in rng.permutation(3):
        word, spelled = result[place]
        pause = bool(rng.random() < 0.5)
        phones += ["SIL"] * pause + spelled
        expected.append((word, pause, len(spelled)))
    ids = [0, *(TREE.phones.ids[phone] for phone in phones), 0]
    columns: list[int] = []
    lengths = []
    for left, phone, right in zip(ids, ids[1:], ids[2:]):
        before = len(columns)
        for state in range(TREE.states):
            columns += [TREE.senone(left, phone, right, state)] * int(rng.integers(1, 4))
        lengths.append(len(columns) - before)
    scores = np.full((len(columns), TREE.count), -1e3, np.float32)
    scores[np.arange(len(columns)), columns] = 0.0
    found = GraphSearch(graph, acoustic_scale=1.0, **WIDE).search(scores)
    assert found.columns.tolist() == columns
    assert found.acoustic_cost == 0.0
    place = 0
    for word, (text, pause, count) in zip(found.words, expected):
        frame += lengths[place] if pause else 0
        place += pause
        frames = sum(lengths[place : place + count])
        assert (word.start, word.frames) == (frame, frames)
        assert word.text in ({"read", "reed"} if text == "reed" else {text})
        frame, place = frame + frames, place + count
    assert len(found.words) == len(expected)


def test_the_best_and_its_alternatives(graph: Graph) -> None:
    scores = scores_of(14, TREE.count)
    search = GraphSearch(graph, acoustic_scale=0.7, **WIDE)
    expected = {
        " ".join(graph.words[label - 1] for label in labels): cost
        for labels, cost in tiny_graphs.pass_tokens(from_openfst(graph.fst), scores, 0.7).items()
    }
    ranked = sorted(expected, key=expected.__getitem__)
    best = search.search(scores)
    assert best.text == ranked[0]
    assert best.cost == pytest.approx(expected[best.text], abs=1e-3)
    assert best.acoustic_cost == pytest.approx(-scores[np.arange(14), best.columns].sum(), abs=1e-3)
    found = search.alternatives(scores, 5)
    assert [each.text for each in found] == ranked[:5]
    assert [each.cost for each in found] == pytest.approx([expected[text] for text in ranked[:5]], abs=1e-3)
    assert found[0].words == best.words
    narrow = GraphSearch(
        graph, acoustic_scale=0.7, beam=1e4, lattice_beam=expected[ranked[2]] - expected[ranked[0]] + 1e-2
    )
    assert [each.text for each in narrow.alternatives(scores, 1000)] == ranked[:3]


def test_ctc(arpa: Path) -> None:
    graph = build_ctc_graph(LEXICON, arpa, SYMBOLS)
    scores = np.full((9, 4), -50.0, np.float32)
    scores[np.arange(9), [0, 1, 1, 3, 0, 3, 0, 1, 0]] = 0.0
    found = GraphSearch(graph, acoustic_scale=1.0).search(scores)
    assert [tuple(word) for word in found.words] == [("are", 1, 5), ("a", 7, 1)]
    assert found.columns.tolist() == [0, 1, 1, 3, 0, 3, 0, 1, 0]


def test_bad_input_is_a_one_line_error(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    search = GraphSearch(graph)
    scores = scores_of(10, TREE.count)
    with pytest.raises(UserError, match="reads 32 scores per frame"):
        search.search(scores[:, 1:])
    with pytest.raises(BadUtterance, match="no frames"):
        search.search(scores[:0])
    for value in (np.nan, np.inf):
        broken = scores.copy()
        broken[3, 3] = value
        with pytest.raises(BadUtterance, match="not finite"):
            search.alternatives(broken, 3)
    for frames in (scores[:1], np.full_like(scores, -np.inf)):
        with pytest.raises(BadUtterance, match=r"no path .*beam 15"):
            search.search(frames)
        with pytest.raises(BadUtterance, match="no path"):
            search.alternatives(frames, 3)
    with pytest.raises(ValueError, match="positive"):
        GraphSearch(graph, beam=0.0)
    monkeypatch.setitem(sys.modules, "kaldi_decoder", None)
    with pytest.raises(UserError, match="kaldi_decoder, which is not installed"):
        GraphSearch(graph)


def test_a_beam_that_dies(graph: Graph) -> None:
    """All frames are the first state of silence, from which nothing ends: a narrow beam has lost every other way."""
    scores = np.full((5, TREE.count), -100.0, np.float32)
    scores[:, TREE.senone(0, 0, 0, 0)] = 0.0
    assert GraphSearch(graph, acoustic_scale=1.0, **WIDE).search(scores).acoustic_cost == 100.0
    with pytest.raises(BadUtterance, match=r"no path .*beam 0\.01"):
        GraphSearch(graph, acoustic_scale=1.0, beam=0.01, max_active=2).search(scores)


def test_a_path_that_does_not_spell_its_words(graph: Graph) -> None:
    times = WordTimes(graph.about)
    a = graph.words.index("a")
    columns = [TREE.senone(0, TREE.phones.ids["e"], 0, state) for state in range(2)]
    assert times(columns, [a]) == [(0, 2)]
    for wrong in (columns[:1], columns[::-1], columns * 2):
        with pytest.raises(ValueError, match="does not spell"):
            times(wrong, [a])
