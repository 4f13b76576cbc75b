"""Alignments: segments, subsampling, storage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_systems import LEXICON, PHONES, random_tree

from retort.alignment.alignment import Alignment, Timed, segments, subsample
from retort.alignment.store import AlignmentStore
from retort.alignment.tree import SenoneTree
from retort.common.errors import UserError
from tiny_alignments import from_phones, save_alignments

TREE = random_tree(0, 3, 30)


def spoken(name: str, words: list[str], seed: int = 0, tree: SenoneTree = TREE, least: int = 3) -> Alignment:
    """An alignment of the first pronunciations, silence first and last and sometimes between, lengths at random."""
    draw = np.random.default_rng(seed)
    phones: list[Timed] = []
    output: list[Timed] = []

    def add(symbol: str) -> Timed:
        start = phones[-1].start + phones[-1].frames if phones else 0
        phones.append(Timed(symbol, start, int(draw.integers(least, least + 6))))
        return phones[-1]

    add("SIL")
    for word in words:
        own = [add(phone) for phone in LEXICON[word][0]]
        output.append(Timed(word, own[0].start, own[-1].start + own[-1].frames - own[0].start))
        if draw.random() < 0.3:
            add("SIL")
    if phones[-1].symbol != "SIL":
        add("SIL")
    return from_phones(name, output, phones, tree)


WORDS = st.lists(st.sampled_from(LEXICON.words), min_size=1, max_size=5)


def test_segments_by_hand() -> None:
    tree = SenoneTree.monophone(PHONES, 3)
    phones = [Timed("SIL", 0, 3), Timed("A", 3, 4), Timed("A", 7, 3), Timed("SIL", 10, 3), Timed("B", 13, 3)]
    alignment = from_phones("u", [Timed("x", 3, 7), Timed("y", 13, 3)], phones, tree)
    assert alignment.senones.tolist() == [0, 1, 2, 3, 3, 4, 5, 3, 4, 5, 0, 1, 2, 6, 7, 8]
    assert alignment.senones.dtype == np.int32
    symbols, index = segments(alignment, "senone")
    assert symbols == [0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2, 6, 7, 8]
    assert index.dtype == np.int32
    assert index.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    symbols, index = segments(alignment, "senone", silence=False)
    assert symbols == [3, 4, 5, 3, 4, 5, 6, 7, 8]
    assert index.tolist() == [-1, -1, -1, 0, 0, 1, 2, 3, 4, 5, -1, -1, -1, 6, 7, 8]
    symbols, index = segments(alignment, "phone", silence=False)
    assert symbols == ["A", "A", "B"]
    assert index.tolist() == [-1] * 3 + [0] * 4 + [1] * 3 + [-1] * 3 + [2] * 3
    assert segments(alignment, "phone")[0] == ["SIL", "A", "A", "SIL", "B"]
    symbols, index = segments(alignment, "word")
    assert symbols == ["x", "y"]
    assert index.tolist() == [-1] * 3 + [0] * 7 + [-1] * 3 + [1] * 3


def test_one_state_twice_is_two_units() -> None:
    tree = SenoneTree.monophone(PHONES, 1)
    alignment = from_phones("u", [], [Timed("A", 0, 2), Timed("A", 2, 1)], tree)
    symbols, index = segments(alignment, "senone")
    assert symbols == [1, 1]
    assert index.tolist() == [0, 0, 1]


@settings(max_examples=15)
@given(WORDS, st.integers(0, 1000), st.sampled_from([2, 3]))
def test_subsampling_keeps_what_lasts(words: list[str], seed: int, factor: int) -> None:
    alignment = spoken("u", words, seed, least=factor)
    frames = len(alignment.senones)
    low = subsample(alignment, factor)
    assert len(low.senones) == -(-frames // factor)
    assert [phone.symbol for phone in low.phones] == [phone.symbol for phone in alignment.phones]
    assert [word.symbol for word in low.words] == words
    assert sum(phone.frames for phone in low.phones) == len(low.senones)
    # In every longer frame, phone and senone are those of one and the same frame of it.
    fine, coarse = segments(alignment, "phone")[1], segments(low, "phone")[1]
    for number in range(len(low.senones)):
        within = slice(number * factor, (number + 1) * factor)
        pairs = set(zip(fine[within].tolist(), alignment.senones[within].tolist()))
        assert (int(coarse[number]), int(low.senones[number])) in pairs
    assert same(subsample(alignment, 1), alignment)


def test_subsampling_takes_the_middle() -> None:
    tree = SenoneTree.monophone(PHONES, 1)
    alignment = from_phones("u", [], [Timed("A", 0, 1), Timed("B", 1, 3), Timed("C", 4, 3)], tree)
    assert subsample(alignment, 3).senones.tolist() == [2, 3, 3]  # frames 1, 4 and 6, where 7 would be


def store_of(
    tmp_path: Path, count: int = 5, tree: SenoneTree = TREE
) -> tuple[AlignmentStore, list[Alignment]]:
    alignments = [
        spoken(f"u/{n}", [LEXICON.words[n % 6], LEXICON.words[n // 2 % 6]], n, tree) for n in range(count)
    ]
    skipped = {"v": "no pronunciation of Ärger"}
    return save_alignments(tmp_path / "store", alignments, tree, LEXICON, skipped=skipped), alignments


def same(one: Alignment, other: Alignment) -> bool:
    return (one.id, one.words, one.phones) == (other.id, other.words, other.phones) and np.array_equal(
        one.senones, other.senones
    )


def test_a_store_gives_back_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_alignments.SHARD", 2)
    _, alignments = store_of(tmp_path)
    store = AlignmentStore(tmp_path / "store")
    assert list(store) == [each.id for each in alignments]
    assert len(list((tmp_path / "store").glob("*.safetensors"))) == 3 + 1  # shards and counts
    for each in reversed(alignments):
        assert same(store[each.id], each)
    assert "v" not in store
    assert store.skipped == {"v": "no pronunciation of Ärger"}
    assert (store.frame_shift, store.tree.roots) == (0.01, TREE.roots)
    assert set(store.lexicon) == {word.symbol for each in alignments for word in each.words}
    frames = np.bincount(np.concatenate([each.senones for each in alignments]), minlength=TREE.count)
    np.testing.assert_array_equal(store.frames, frames)
    assert store.visits.sum() == sum(len(segments(each, "senone")[0]) for each in alignments)
    np.testing.assert_allclose(store.priors, np.maximum(frames, 0.5) / np.maximum(frames, 0.5).sum())
    seen = frames > 30
    expected = 1 - store.visits / np.maximum(frames, 1)
    np.testing.assert_allclose(store.self_loops[seen], expected[seen], atol=0.15)


def test_a_new_store_replaces_the_old(tmp_path: Path) -> None:
    store_of(tmp_path, 5)
    store, alignments = store_of(tmp_path, 2)
    assert list(store) == [each.id for each in alignments]


def test_bad_stores_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no alignments"):
        AlignmentStore(tmp_path)
    store_of(tmp_path)
    (tmp_path / "store" / "00000.safetensors").write_bytes(b"123456789")
    with pytest.raises(UserError, match="damaged"):
        AlignmentStore(tmp_path / "store")
