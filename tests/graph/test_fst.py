from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_graphs
from retort.common.errors import UserError
from retort.graph.fst import (
    Fst,
    check_const_fst,
    drop_epsilons,
    from_openfst,
    join,
    to_openfst,
    wheel,
    write_fst,
)
from retort.graph.lexicon import disambiguate
from retort.graph.states import add_self_loops

STATE = st.integers(0, 5)
ARCS = st.lists(
    st.tuples(STATE, st.integers(0, 2), st.integers(0, 2), st.floats(0, 2, width=16), STATE),
    min_size=1,
    max_size=14,
)


def fst_of(arcs: list[tuple[int, int, int, float, int]]) -> Fst:
    finals = np.full(6, np.inf, np.float32)
    finals[[4, 5]] = [0.5, 0.0]
    return Fst(0, finals, *join(tuple(zip(*arcs))))


def forward(arcs: list[tuple[int, int, int, float, int]]) -> Fst:
    """Without circles of epsilons: arcs without input go up."""
    return fst_of([arc for arc in arcs if arc[1] or arc[0] < arc[4]] or [(0, 1, 0, 0.0, 5)])


@settings(max_examples=30)
@given(ARCS)
def test_there_and_back(arcs: list[tuple[int, int, int, float, int]]) -> None:
    fst = fst_of(sorted(arcs, key=lambda arc: arc[0]))
    back = from_openfst(to_openfst(fst))
    assert back.start == fst.start
    for name in ("finals", "sources", "inputs", "outputs", "weights", "targets"):
        np.testing.assert_array_equal(getattr(back, name), getattr(fst, name))


def test_what_openfst_writes_itself() -> None:
    text = "0 1 1 2 0.5\n0 1 3 0 1.25\n1 2 0 1\n2 0.75\n"
    fst = from_openfst(wheel("kaldifst").compile(text))
    assert fst.inputs.tolist() == [1, 3, 0]
    assert fst.outputs.tolist() == [2, 0, 1]
    assert fst.weights.tolist() == [0.5, 1.25, 0.0]
    assert fst.finals.tolist() == [np.inf, np.inf, 0.75]
    assert to_openfst(fst).to_str() == wheel("kaldifst").compile(text).to_str()


@settings(max_examples=30)
@given(ARCS)
def test_without_epsilons_the_paths_stay(arcs: list[tuple[int, int, int, float, int]]) -> None:
    fst = forward(arcs)
    shorter = drop_epsilons(fst)
    assert len(shorter.sources) <= len(fst.sources)
    for frames in range(3):
        scores = np.random.default_rng(frames).normal(size=(frames, 2)).astype(np.float32)
        found, expected = (tiny_graphs.pass_tokens(each, scores) for each in (shorter, fst))
        assert found == pytest.approx(expected, abs=1e-4)


def test_epsilons_go() -> None:
    chain = fst_of([(0, 1, 0, 0.5, 1), (1, 0, 2, 0.25, 2), (2, 0, 0, 0.25, 3), (3, 2, 0, 1.0, 4)])
    shorter = drop_epsilons(chain)
    assert sorted(zip(shorter.inputs.tolist(), shorter.outputs.tolist(), shorter.weights.tolist())) == [
        (1, 2, 0.75),
        (2, 0, 1.25),
    ]


@settings(max_examples=30)
@given(ARCS)
def test_self_loops_repeat_what_was_entered(arcs: list[tuple[int, int, int, float, int]]) -> None:
    """Looped and unlooped paths as an HMM has them: expanded by hand to one state for each arc."""
    fst = forward(arcs)
    loops = np.array([0.3, 0.6])
    by_hand = [(arc[0], arc[1], arc[2], arc[3], arc[4]) for arc in _rows(fst) if not arc[1]]
    finals = [*fst.finals]
    for source, label, output, weight, target in _rows(fst):
        if label:
            stay = loops[label - 1]
            place = len(finals)
            finals.append(np.float32(np.inf))
            by_hand += [
                (source, label, output, weight - np.log(1 - stay), place),
                (place, label, 0, -np.log(stay), place),
                (place, 0, 0, 0.0, target),
            ]
    expected = Fst(0, np.array(finals, np.float32), *join(tuple(zip(*by_hand))))
    found = add_self_loops(fst, loops)
    for frames in (1, 2, 3):
        scores = np.random.default_rng(frames).normal(size=(frames, 2)).astype(np.float32)
        assert tiny_graphs.pass_tokens(found, scores) == pytest.approx(
            tiny_graphs.pass_tokens(expected, scores), abs=1e-4
        )


def _rows(fst: Fst) -> list[tuple[int, int, int, float, int]]:
    columns = (fst.sources, fst.inputs, fst.outputs, fst.weights, fst.targets)
    return list(zip(*(column.tolist() for column in columns)))


def test_homophones_and_beginnings_are_distinguished() -> None:
    spellings = [(1, (1, 2)), (2, (1, 2)), (3, (1,)), (4, (2,)), (5, (3, 1)), (6, (1, 2, 3))]
    symbols = disambiguate(spellings)
    assert symbols == [1, 2, 1, 0, 0, 0]
    ended = {(*units, symbol) for (_, units), symbol in zip(spellings, symbols)}
    assert len(ended) == len(spellings)


def test_a_missing_wheel_and_a_full_disk_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fst = to_openfst(fst_of([(0, 1, 1, 0.0, 5)]))
    with pytest.raises(UserError, match="cannot be written"):
        write_fst(fst, tmp_path / "none" / "fst")
    monkeypatch.setitem(sys.modules, "kaldifst", None)
    with pytest.raises(UserError, match=r"retort-asr\[hybrid\]"):
        wheel("kaldifst")


def damage(content: bytes, where: int, value: bytes) -> bytes:
    return content[:where] + value + content[where + len(value) :]


def test_a_damaged_file_is_reported_before_openfst_maps_it(tmp_path: Path) -> None:
    path = tmp_path / "graph.fst"
    arcs = join([[0, 0, 1, 1], [1, 2, 3, 0], [0, 1, 0, 2], [0.5, 1.0, 0.0, 2.0], [1, 1, 2, 2]])
    write_fst(to_openfst(Fst(0, np.array([np.inf, np.inf, 0.0], np.float32), *arcs)), path)
    content = path.read_bytes()
    check_const_fst(path, 3, 2)
    for broken in (b"", content[:10], content[:-1], content + b"\0", bytes(len(content))):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"\w"):
            check_const_fst(path, 3, 2)
    for where in range(len(content) - 4 * 16, len(content), 16):  # the targets of the arcs
        path.write_bytes(damage(content, where + 12, b"\xff\xff\xff\x7f"))
        with pytest.raises(ValueError, match="target"):
            check_const_fst(path, 3, 2)
    path.write_bytes(content)
    for limits in ((2, 2), (3, 1)):
        with pytest.raises(ValueError, match="does not exist"):
            check_const_fst(path, *limits)
