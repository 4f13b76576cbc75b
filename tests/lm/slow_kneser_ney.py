"""Interpolated modified Kneser-Ney as its definition has it: dictionaries of tuples, one history at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

EOS = 2
Gram = tuple[int, ...]


class SlowKneserNey:
    """Asked for one probability at a time.

    Args:
        sentences: ids without EOS.
        words: all that may be recognised, EOS among them.
        prune: n-grams of 2, 3, ... words seen so often or less are not known.
    """

    def __init__(
        self,
        sentences: Sequence[Sequence[int]],
        words: Sequence[int],
        order: int,
        discounts: Callable[[list[int]], Sequence[float]],
        prune: Sequence[int] = (),
    ) -> None:
        self.words, self.order = words, order
        rows = [(EOS, *each, EOS) for each in sentences]
        self.seen: Counter[Gram] = Counter(
            row[start : start + size]
            for row in rows
            for size in range(1, order + 1)
            for start in range(len(row) - size + 1)
        )
        self.seen[EOS,] -= len(rows)
        self.counts = {gram: self._adjusted(gram) for gram in self.seen}
        self.discounts = [
            [0.0, *discounts([c for gram, c in self.counts.items() if len(gram) == size])]
            for size in range(1, order + 1)
        ]
        self.prune = prune

    def _adjusted(self, gram: Gram) -> int:
        if len(gram) == self.order or (len(gram) > 1 and gram[0] == EOS):
            return self.seen[gram]
        return sum(1 for longer in self.seen if longer[1:] == gram)

    def known(self, gram: Gram) -> bool:
        if len(gram) == 1:
            return True
        threshold = self.prune[min(len(gram) - 2, len(self.prune) - 1)] if self.prune else 0
        return self.seen.get(gram, 0) > threshold

    def prob(self, word: int, history: Gram) -> float:
        """Of `word` after `history`, of which the last words count."""
        history = history[max(len(history) - self.order + 1, 0) :]
        below = self.prob(word, history[1:]) if history else 1.0 / len(self.words)
        followers = {w: self.counts[(*history, w)] for w in self.words if (*history, w) in self.counts}
        if not followers or (history and not self.known(history)):
            return below
        total = sum(followers.values())
        shares = {w: self._discounted((*history, w)) / total for w in followers if self.known((*history, w))}
        return shares.get(word, 0.0) + (1.0 - sum(shares.values())) * below

    def _discounted(self, gram: Gram) -> float:
        count = self.counts[gram]
        return count - self.discounts[len(gram) - 1][min(count, 3)]
