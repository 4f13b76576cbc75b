from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.lm.config import PieceConfig
from retort.lm.pieces import (
    Cutter,
    PieceMix,
    PieceStore,
    causal_cutter,
    length_batches,
    train_pieces,
    train_wordpiece,
)
from retort.text.tokenizers import EOS, UNKNOWN

Counting = Callable[[int, int], list[str]]
Write = Callable[..., PieceStore]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_wordpiece(["one two three four five six seven eight"] * 9, 30, True)


@pytest.fixture
def write(tokenizer: Any) -> Write:
    def make(folder: Path, sentences: list[str], longest: int = 32) -> PieceStore:
        def cut(texts: Sequence[str]) -> list[list[int]]:
            return tokenizer(list(texts), truncation=True, max_length=longest).input_ids

        PieceStore.write(folder, sentences, Cutter(cut, len(tokenizer), {}), lambda done: None)
        return PieceStore(folder)

    return make


def test_a_tokenizer_of_ones_own_has_the_special_pieces_and_the_case() -> None:
    tokenizer = train_wordpiece(["the cat sat"] * 5, 40, True)
    assert tokenizer.is_fast
    assert tokenizer("THE cat").input_ids == tokenizer("the CAT").input_ids
    kept = train_wordpiece(["The cat sat"] * 5, 40, False)
    assert kept("The").input_ids != kept("the").input_ids
    for piece in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(tokenizer, f"{piece}_token_id") is not None


def test_stored_pieces_are_the_tokenizers(
    tmp_path: Path, counting: Counting, write: Write, tokenizer: Any
) -> None:
    sentences = counting(50, 1)
    store = write(tmp_path / "store", sentences, longest=9)
    assert len(store) == 50
    expected = tokenizer(sentences, truncation=True, max_length=9).input_ids
    assert [store[index].tolist() for index in range(50)] == expected
    assert store.lengths.tolist() == [len(ids) for ids in expected]
    assert store.lengths.max() == 9
    assert np.load(tmp_path / "store" / "ids.npy").dtype == np.uint16


@pytest.mark.parametrize(("kind", "size"), [("characters", 8000), ("bpe", 12), ("words", 6)])
def test_a_students_pieces_are_framed(tmp_path: Path, kind: str, size: int) -> None:
    texts = ["ab abc", "ab", "c ab ab"]
    tokenizer = train_pieces(texts, PieceConfig(kind=kind, size=size))
    assert tokenizer.size <= size
    cutter = causal_cutter(tokenizer, 5)
    rows = cutter.cut(texts)
    assert rows == [[EOS, *tokenizer.encode(text), EOS][:5] for text in texts]
    assert max(map(len, rows)) <= 5
    assert tokenizer.decode(tokenizer.encode("ab ab")) == "ab ab"
    assert UNKNOWN in tokenizer.encode("zz")
    other = train_pieces(["abd"] * 9 + texts, PieceConfig(kind=kind, size=size))
    same = train_pieces(texts, PieceConfig(kind=kind, size=size))
    assert causal_cutter(same, 5).identity == cutter.identity
    assert cutter.identity not in (causal_cutter(other, 5).identity, causal_cutter(tokenizer, 6).identity)
    PieceStore.write(tmp_path / "store", texts, cutter, lambda done: None)
    ids, repeats = PieceMix([PieceStore(tmp_path / "store")] * 2, [1, 3]).counted()
    assert ids.tolist() == [each for row in rows * 2 for each in row]
    assert repeats.tolist() == [1, 1, 1, 3, 3, 3]


def test_no_sentence_is_an_error(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match="no sentence is left"):
        write(tmp_path / "store", [])


def test_a_mix_repeats_the_small_store(tmp_path: Path, counting: Counting, write: Write) -> None:
    large, small = counting(7, 0), counting(3, 1)
    stores = [write(tmp_path / name, each) for name, each in (("large", large), ("small", small))]
    mix = PieceMix(stores, [1, 4])
    assert collections.Counter(mix.epoch.tolist()) == {
        **dict.fromkeys(range(7), 1),
        **dict.fromkeys(range(7, 10), 4),
    }
    assert mix[6].tolist() == stores[0][6].tolist()
    assert mix[7].tolist() == stores[1][0].tolist()
    assert mix.lengths[9] == len(stores[1][2])


def test_batches_hold_every_sentence_once_and_not_too_many_pieces() -> None:
    draw = np.random.default_rng(0)
    lengths, numbers = draw.integers(3, 30, 500), np.concatenate([np.arange(500), np.arange(20)])
    batches = length_batches(lengths, numbers, 64, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == sorted(numbers)
    assert all(len(batch) * lengths[batch].max() <= 64 for batch in batches)
    padding = 1 - lengths[numbers].sum() / sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padding < 0.05
    longest_first = [int(lengths[batch].max()) for batch in batches]
    assert longest_first != sorted(longest_first, reverse=True)


def test_batches_are_drawn_by_the_generator() -> None:
    lengths, numbers = np.full(40, 4), np.arange(40)

    def drawn(seed: int) -> list[list[int]]:
        return [each.tolist() for each in length_batches(lengths, numbers, 16, np.random.default_rng(seed))]

    assert drawn(1) == drawn(1)
    assert sorted(map(sorted, drawn(1))) != sorted(map(sorted, drawn(2)))


def test_a_sentence_longer_than_a_batch_is_a_batch() -> None:
    batches = length_batches(np.array([90, 4, 4]), np.arange(3), 8, np.random.default_rng(0))
    assert sorted(len(batch) for batch in batches) == [1, 2]
