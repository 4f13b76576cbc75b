"""Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), estimated with sorted arrays of n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.lm.causal import BARRED, IMPOSSIBLE
from retort.lm.ngram import NgramTable
from retort.text.tokenizers import EOS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Discounts = tuple[float, float, float]
FALLBACK: Discounts = (0.5, 1.0, 1.5)
"""Discounts for orders whose counts give none."""


@dataclass(frozen=True)
class _Level:
    """All n-grams of one order, sorted by history and last word.

    Attributes:
        histories: `(K,)`, number of the history among the n-grams of the next lower order.
        words: `(K,)`, last word.
        shorter: `(K,)`, number of the n-gram without its first word among those of the next lower order.
        starts: `(K,)`, whether it is at the start of a sentence.
        counts: `(K,)`, its count.
    """

    histories: Ints
    words: Ints
    shorter: Ints
    starts: NDArray[np.bool_]
    counts: Ints


def estimate(
    ids: NDArray[np.integer],
    lengths: Ints,
    repeats: Ints,
    vocabulary: int,
    order: int,
    prune: Sequence[int] = (),
) -> tuple[NgramTable, list[Discounts]]:
    """Estimate a model of all words but the barred ones; its probabilities sum to 1 after every history.

    Orders below the highest use continuation counts (distinct preceding words), and plain counts at the start
    of a sentence. The probability of pruned n-grams goes to the lower-order history.

    Args:
        ids: `(P,)`, concatenated sentences, each `EOS words EOS` (without the last EOS if truncated).
        lengths: lengths of the sentences, including EOS.
        repeats: repetitions of each sentence.
        vocabulary: number of ids.
        order: order of the longest n-grams.
        prune: non-decreasing count thresholds for order 2, 3, ...: n-grams with this count or less are left
            out; the last value applies to higher orders.

    Returns:
        The table, and for each order the discounts of counts 1, 2, and 3 or more.
    """
    levels = _count(ids, lengths, repeats, vocabulary, order)
    below = np.full(vocabulary, 1.0 / (vocabulary - len(BARRED)))
    below[BARRED] = 0.0
    probs: list[Floats] = []
    lefts: list[Floats] = []
    keeps, discounts = [], []
    for number, level in enumerate(levels, 1):
        counts = level.counts
        if number < order:
            counts = np.bincount(levels[number].shorter, minlength=len(counts))
            if number > 1:
                counts = np.where(level.starts, level.counts, counts)
        discount = discounts_of(counts)
        threshold = prune[min(number - 2, len(prune) - 1)] if prune and number > 1 else -1
        keep = level.counts > threshold
        totals = np.bincount(level.histories, counts)
        taken = np.array([0.0, *discount])[np.minimum(counts, 3)]
        shares = (counts - taken) * keep / np.maximum(totals, 1)[level.histories]
        left = np.ones(len(probs[-1]) if probs else 1)
        left -= np.bincount(level.histories, shares, len(left))
        probs.append(shares + left[level.histories] * (probs[-1][level.shorter] if probs else below))
        lefts.append(left)
        keeps.append(keep)
        discounts.append(discount)
    return _table(levels, probs, lefts, keeps, vocabulary), discounts


def discounts_of(counts: Ints) -> Discounts:
    """Discounts of counts 1, 2, and 3 or more (Chen and Goodman 1998, equation 26).

    Returns :data:`FALLBACK` if the text is too small.
    """
    seen = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].astype(float)
    if not seen.all():
        return FALLBACK
    share = seen[0] / (seen[0] + 2 * seen[1])
    found = [float(k - (k + 1) * share * seen[k] / seen[k - 1]) for k in (1, 2, 3)]
    if not all(0.0 < each < k for k, each in enumerate(found, 1)):
        return FALLBACK
    return found[0], found[1], found[2]


def _count(
    ids: NDArray[np.integer], lengths: Ints, repeats: Ints, vocabulary: int, order: int
) -> list[_Level]:
    """The n-grams of every order; the unigrams are all ids."""
    small = np.int32 if len(ids) < 2**31 else np.int64
    ends = np.repeat(np.cumsum(lengths).astype(small), lengths)
    weights = np.repeat(repeats.astype(small), lengths)
    weighted = bool((repeats != 1).any())
    counts = np.bincount(ids, weights, vocabulary).astype(np.int64)
    counts[EOS] -= repeats.sum()  # the start symbol is not predicted
    words, nothing = np.arange(vocabulary), np.zeros(vocabulary, np.int64)
    levels = [_Level(nothing, words, nothing, words == EOS, counts)]
    places, numbers = np.arange(len(ids), dtype=small), ids.astype(np.int64)
    keys: Ints = words
    for length in range(2, order + 1):
        inside = places + length <= ends[places]
        places, numbers = places[inside], numbers[inside]
        before, found = keys, numbers * vocabulary + ids[places + length - 1]
        keys, numbers, seen = np.unique(found, return_inverse=True, return_counts=True)
        if weighted:
            seen = np.bincount(numbers, weights[places], len(keys)).astype(np.int64)
        histories, words = np.divmod(keys, vocabulary)
        last = levels[-1]
        shorter = np.searchsorted(before, last.shorter[histories] * vocabulary + words)
        levels.append(_Level(histories, words, shorter, last.starts[histories], seen))
    return levels


def _table(
    levels: list[_Level],
    probs: list[Floats],
    lefts: list[Floats],
    keeps: list[NDArray[np.bool_]],
    vocabulary: int,
) -> NgramTable:
    """The table of the n-grams that remain; the left-over probability of a history becomes its back-off."""
    nodes, first = np.zeros(1, np.int64), 1
    keys, counts = [], []
    for level, keep in zip(levels, keeps):
        keys.append((nodes[level.histories] * vocabulary + level.words)[keep])
        nodes = first + np.cumsum(keep) - 1
        counts.append(int(keep.sum()))
        first += counts[-1]
    log_probs = [_log(each[keep]) for each, keep in zip(probs, keeps)]
    backoffs = [_log(left[keep]) for left, keep in zip(lefts[1:], keeps)]
    return NgramTable(
        vocabulary,
        counts,
        np.concatenate(keys),
        np.concatenate(log_probs),
        np.concatenate([*backoffs, np.zeros(counts[-1], np.float32)]),
    )


def _log(values: Floats) -> NDArray[np.float32]:
    """Natural logarithm; `IMPOSSIBLE` for 0."""
    with np.errstate(divide="ignore"):
        return np.where(values > 0.0, np.log(values), IMPOSSIBLE).astype(np.float32)
