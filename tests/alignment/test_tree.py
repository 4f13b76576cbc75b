"""The senone tree: what a split gains, which is taken, and where triphones go that were never seen."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from small_systems import PHONES, random_tree

from retort.alignment.phones import Phones
from retort.alignment.tree import (
    Question,
    SenoneTree,
    Split,
    TriphoneStatistics,
    grow_tree,
    log_likelihood,
    phone_classes,
)
from retort.common.errors import UserError


def slow_log_likelihood(values: np.ndarray) -> float:
    """Of frames `(T, D)` under their own Gaussian."""
    return float(norm.logpdf(values, values.mean(0), np.sqrt(np.maximum(values.var(0), 0.01))).sum())


def frames_of(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Keys of triphones with one state, and features that hang on the neighbours."""
    draw = np.random.default_rng(seed)
    keys = np.stack([*(draw.integers(0, len(PHONES), (3, count))), np.zeros(count, int)], 1)
    keys[keys[:, 1] == 0, 1] = 1
    centres = draw.normal(size=(2, len(PHONES), 2)) * 2
    values = centres[0, keys[:, 0]] + centres[1, keys[:, 2]] + draw.normal(size=(count, 2))
    return keys, values


def squared(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, values**2, np.ones((len(values), 1))], 1)


def test_likelihood_of_sums_is_that_of_their_frames() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 0.001]
    whole = squared(values).sum(0)
    # Where the floor holds, the sum of squares is below what it was made for.
    assert log_likelihood(whole) == pytest.approx(slow_log_likelihood(values), abs=0.51 * 50)
    values = values[:, :2]
    assert log_likelihood(squared(values).sum(0)) == pytest.approx(slow_log_likelihood(values))


def test_statistics_add_up() -> None:
    keys, values = frames_of(0)
    whole = TriphoneStatistics.of(keys, squared(values))
    parts = [TriphoneStatistics.of(keys[part::3], squared(values[part::3])) for part in range(3)]
    together = TriphoneStatistics.together(parts)
    np.testing.assert_array_equal(whole.keys, together.keys)
    np.testing.assert_allclose(whole.sums, together.sums)
    row = whole.keys.tolist().index(keys[7].tolist())
    np.testing.assert_allclose(whole.sums[row], squared(values[(keys == keys[7]).all(1)]).sum(0))


@settings(max_examples=4)
@given(st.integers(0, 1000))
def test_each_split_is_the_best_there_is(seed: int) -> None:
    """Grown one senone at a time, every tree comes from the one before by the split that gains most."""
    keys, values = frames_of(seed)
    statistics = TriphoneStatistics.of(keys, squared(values))
    classes = phone_classes(statistics, len(PHONES), 0)
    least = 20
    first = len(PHONES)
    labels_before = keys[:, 1]
    total_before = sum(
        slow_log_likelihood(values[labels_before == each]) for each in np.unique(labels_before)
    )
    for senones in range(first + 1, first + 4):
        tree = grow_tree(statistics, PHONES, 1, senones=senones, minimum_frames=least)
        assert tree.count == senones
        labels = np.array([tree.senone(*key) for key in keys.tolist()])
        total = sum(slow_log_likelihood(values[labels == each]) for each in np.unique(labels))
        gains = []
        for leaf, column, members in itertools.product(np.unique(labels_before), (0, 2), classes):
            own = labels_before == leaf
            yes = own & np.isin(keys[:, column], list(members))
            no = own & ~yes
            if yes.sum() >= least and no.sum() >= least:
                gain = slow_log_likelihood(values[yes]) + slow_log_likelihood(values[no])
                gains.append(gain - slow_log_likelihood(values[own]))
        assert total - total_before == pytest.approx(max(gains))
        assert np.bincount(labels)[np.unique(labels)].min() >= least
        labels_before, total_before = labels, total


def test_phones_that_sound_alike_are_a_class() -> None:
    draw = np.random.default_rng(0)
    centres = [[0, 0], [9, 9], [9, 8.5], [-9, 9], [-9, 8.5]]
    keys = np.array([[0, phone, 0, 0] for phone in range(5) for _ in range(30)])
    values = np.array([centres[key[1]] + draw.normal(size=2) * 0.3 for key in keys])
    classes = phone_classes(TriphoneStatistics.of(keys, squared(values)), 6, 0)
    assert classes[:5] == [frozenset([phone]) for phone in range(5)]
    assert {frozenset([1, 2]), frozenset([3, 4])} == set(classes[5:7])
    assert len(classes) == 5 + 3
    assert not any(5 in members for members in classes)


@pytest.mark.parametrize("states", [1, 3])
def test_every_triphone_has_a_senone(states: int) -> None:
    """Also where nothing was seen: of phone D no triphone at all, of the others a few."""
    draw = np.random.default_rng(1)
    seen = [
        [left, phone, right, state]
        for left, phone, right in ((1, 2, 3), (3, 2, 1), (2, 1, 3))
        for state in range(states)
    ]
    keys = np.repeat(np.array(seen), 40, 0)
    statistics = TriphoneStatistics.of(keys, squared(draw.normal(size=(len(keys), 2)) + keys[:, :1] * 3))
    tree = grow_tree(statistics, PHONES, states, senones=100, minimum_frames=20)
    assert tree.count == len(PHONES) * states + states  # phone 2 is known in two ways
    names = tree.phones_of_senones()
    assert len(names) == tree.count
    for left, phone, right, state in itertools.product(*[range(len(PHONES))] * 3, range(states)):
        assert 0 <= tree.senone(left, phone, right, state) < tree.count
        assert names[tree.senone(left, phone, right, state)] == PHONES.symbols[phone]
    assert len({tree.senone(left, 0, right, 0) for left in range(5) for right in range(5)}) == 1
    assert tree.senone(1, 2, 3, 0) != tree.senone(3, 2, 1, 0)
    owners = [
        {tree.senone(left, phone, right, 0) for left in range(5) for right in range(5)} for phone in range(5)
    ]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_an_unseen_triphone_goes_where_its_neighbours_say() -> None:
    tree = SenoneTree(PHONES, 1, [[0], [Split(Question(False, frozenset([2, 4])), 1, 2)], [3], [4], [5]])
    assert [tree.senone(left, 1, 0, 0) for left in range(5)] == [2, 2, 1, 2, 1]
    assert [tree.senone(0, 1, right, 0) for right in range(5)] == [2] * 5
    assert tree.phones_of_senones() == [PHONES.symbols[phone] for phone in (0, 1, 1, 2, 3, 4)]


def test_a_senone_that_phones_share_is_of_the_first() -> None:
    tree = SenoneTree(PHONES, 1, [[0], [1], [1], [2], [1]])
    assert tree.phones_of_senones() == [PHONES.symbols[phone] for phone in (0, 1, 3)]


@pytest.mark.parametrize("states", [1, 3])
def test_it_is_saved_and_opened(states: int, tmp_path: Path) -> None:
    tree = random_tree(3, states, 30)
    tree.save(tmp_path / "tree.json")
    again = SenoneTree.load(tmp_path / "tree.json")
    assert again.phones == tree.phones
    assert (again.count, again.states) == (tree.count, states)
    assert again.roots == tree.roots


def test_monophones_have_no_contexts() -> None:
    tree = SenoneTree.monophone(PHONES, 3)
    assert tree.count == 15
    assert {tree.senone(left, 2, right, 1) for left in range(5) for right in range(5)} == {7}


def test_broken_trees_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    for content in (
        "",
        "{}",
        '{"states": 1, "roots": {"SIL": [0], "A": [0, 1]}}',
        '{"states": 1, "roots": {"SIL": [0]}}',
    ):
        path.write_text(content)
        with pytest.raises(UserError) as caught:
            SenoneTree.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"tree\.json: .*cannot be read"):
        SenoneTree.load(tmp_path / "no" / "tree.json")


def test_phones() -> None:
    assert Phones(["B", "A"]).ids == {"SIL": 0, "A": 1, "B": 2}
    with pytest.raises(UserError, match="'SIL' is a phone of the lexicon"):
        Phones(["A", "SIL"])
    with pytest.raises(UserError, match="no phones"):
        Phones([])
