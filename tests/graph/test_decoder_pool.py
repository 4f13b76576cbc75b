"""The same readings, in one process or in several."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import tiny_graphs
from retort.common.errors import BadUtterance, UserError
from retort.graph.build import Graph, build_graph
from retort.graph.pool import DecoderPool, NBestList
from retort.graph.search import GraphHypothesis, GraphSearch

LEXICON = {"read": [["r", "e"], ["r", "i"]], "reed": [["r", "i"]], "a": [["e"]], "are": [["e", "r", "r"]]}
TREE = tiny_graphs.TinyTree("eir", states=2)
LOOPS = np.linspace(0.2, 0.9, TREE.count)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    ngrams = tiny_graphs.random_ngrams(sorted(LEXICON), np.random.default_rng(0))
    arpa = tiny_graphs.write_ngrams(folder / "lm.arpa", ngrams)
    return build_graph(LEXICON, arpa, TREE, LOOPS, folder=folder / "graph")


@pytest.fixture(scope="module")
def scores() -> list[np.ndarray]:
    """Of utterances of several lengths; one is too short for any word."""
    draw = np.random.default_rng(1)
    return [
        draw.normal(0, 2, (frames, TREE.count)).astype(np.float32) for frames in (14, 9, 1, 20, 7, 11, 16)
    ]


@pytest.fixture(scope="module")
def crowd() -> DecoderPool:
    return DecoderPool(2)


def same(found: list[NBestList], expected: list[NBestList]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        if isinstance(other, BadUtterance):
            assert isinstance(one, BadUtterance)
            assert (str(one), one.what, one.remedy) == (str(other), other.what, other.remedy)
            continue
        assert isinstance(one, list)
        assert [shown(each) for each in one] == [shown(each) for each in other]


def shown(each: GraphHypothesis) -> tuple[object, ...]:
    return each.words, each.numbers, each.columns.tolist(), each.graph_cost, each.acoustic_cost, each.cost


@pytest.mark.parametrize("most", [1, 4])
def test_the_number_of_processes_changes_nothing(
    graph: Graph, scores: list[np.ndarray], crowd: DecoderPool, most: int
) -> None:
    for scale in (0.3, 1.0):  # the same processes serve another scale
        search = GraphSearch(graph, scale)
        expected = DecoderPool().decode(search, scores, most)
        assert isinstance(expected[2], BadUtterance)
        assert sum(isinstance(each, list) for each in expected) >= 4
        same(crowd.decode(search, scores, most), expected)


def test_every_process_has_the_graph_before_the_first_utterance(graph: Graph, crowd: DecoderPool) -> None:
    crowd.prepare(GraphSearch(graph), 50)
    pool = crowd._workers()._pool
    assert pool is not None
    assert len(pool._processes) == 2
    assert os.getpid() not in pool._processes


def test_a_graph_that_is_nowhere_and_one_that_has_gone(
    graph: Graph, scores: list[np.ndarray], tmp_path: Path
) -> None:
    assert graph.folder is not None
    shutil.copytree(graph.folder, tmp_path / "graph")
    moved = Graph.load(tmp_path / "graph")
    shutil.rmtree(tmp_path / "graph")
    expected = DecoderPool().decode(GraphSearch(graph), scores[:3], 1)
    with DecoderPool(2) as pool:
        same(pool.decode(GraphSearch(moved), scores[:3], 1), expected)
        same(pool.decode(GraphSearch(moved), scores[:3], 1), expected)
        (saved,) = (folder for _, folder in pool._saved)
        assert saved.exists()
    assert not saved.exists()


def test_another_graph_in_its_place_is_not_taken_for_it(
    graph: Graph, scores: list[np.ndarray], tmp_path: Path
) -> None:
    assert graph.folder is not None
    shutil.copytree(graph.folder, tmp_path / "graph")
    before = Graph.load(tmp_path / "graph")
    expected = DecoderPool().decode(GraphSearch(before), scores[:3], 1)
    other = build_graph(LEXICON, graph.folder.parent / "lm.arpa", TREE, LOOPS / 3, folder=tmp_path / "graph")
    with DecoderPool(2) as pool:
        same(pool.decode(GraphSearch(before), scores[:3], 1), expected)
        same(
            pool.decode(GraphSearch(other), scores[:3], 1),
            DecoderPool().decode(GraphSearch(other), scores[:3], 1),
        )


def test_one_utterance_or_one_core_starts_nobody(graph: Graph, scores: list[np.ndarray]) -> None:
    search = GraphSearch(graph)
    with DecoderPool(2) as many, DecoderPool(1) as one:
        assert isinstance(many.decode(search, scores[:1], 1)[0], list)
        many.prepare(search, 1)
        one.prepare(search, 9)
        one.decode(search, scores, 1)
        assert (many._pool, one._pool) == (None, None)


def test_errors_of_the_model_are_raised_unchanged(graph: Graph, crowd: DecoderPool) -> None:
    wrong = [np.zeros((5, 3), np.float32)] * 2
    with pytest.raises(UserError, match="reads 32 scores per frame") as caught:
        crowd.decode(GraphSearch(graph), wrong, 1)
    assert not isinstance(caught.value, BadUtterance)


def test_closed_it_may_be_used_again(graph: Graph, scores: list[np.ndarray], crowd: DecoderPool) -> None:
    search = GraphSearch(graph)
    expected = crowd.decode(search, scores, 1)
    pool = crowd._workers()._pool
    assert pool is not None
    processes = list(pool._processes.values())
    crowd.close()
    assert not any(process.is_alive() for process in processes)
    same(crowd.decode(search, scores, 1), expected)
    crowd.close()


def test_by_default_all_cores() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert DecoderPool(0).jobs == allowed
    assert DecoderPool().jobs == 1
