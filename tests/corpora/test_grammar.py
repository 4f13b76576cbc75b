from __future__ import annotations

import random
from collections import Counter

import pytest

from retort.common.errors import UserError
from retort.corpora import grammar


def test_sentences_are_distinct_lower_case_and_of_natural_length() -> None:
    drawn = grammar.sentences(1400, seed=1)
    assert len(set(drawn)) == len(drawn) == 1400
    assert all(word.isalpha() and word.islower() for sentence in drawn for word in sentence.split())
    lengths = Counter(len(sentence.split()) for sentence in drawn)
    assert min(lengths) == 3
    assert max(lengths) == 10
    assert set(lengths) == set(range(3, 11))
    assert max(lengths.values()) < 0.4 * len(drawn)


def test_vocabulary_is_small_and_used_whole() -> None:
    words = grammar.vocabulary()
    assert 70 <= len(words) <= 110
    assert {word for sentence in grammar.sentences(1400, seed=2) for word in sentence.split()} == words


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_no_sentence_is_in_two_splits(seed: int) -> None:
    parts = grammar.splits(1200, 100, 100, seed)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1200,
        "validation": 100,
        "test": 100,
    }
    assert len({sentence for part in parts.values() for sentence in part}) == 1400


def test_every_word_of_the_test_occurs_in_training() -> None:
    parts = grammar.splits(1200, 100, 100, seed=1)
    recognised = {word for sentence in parts["train"] for word in sentence.split()}
    assert recognised >= {word for sentence in parts["test"] for word in sentence.split()}


def test_short_and_long_sentences_are_spread_over_the_splits() -> None:
    parts = grammar.splits(2000, 0, 2000, seed=3)
    means = [sum(len(s.split()) for s in parts[name]) / 2000 for name in ("train", "test")]
    assert abs(means[0] - means[1]) < 0.2


def test_seed_decides() -> None:
    assert grammar.sentences(50, seed=1) == grammar.sentences(50, seed=1)
    assert grammar.sentences(50, seed=1) != grammar.sentences(50, seed=2)


def test_seed_leaves_the_global_generator_alone() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    grammar.sentences(10, seed=1)
    assert random.random() == expected


def test_asking_for_too_much_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "RULES", {"SENTENCE": ("the THING fell",), "THING": ("lamp", "boat")})
    assert sorted(grammar.sentences(2, seed=1)) == ["the boat fell", "the lamp fell"]
    with pytest.raises(UserError, match="yields about 2 sentences, 3 were requested"):
        grammar.sentences(3, seed=1)
