"""Sentences as pieces: a tokenizer of one's own, and a million sentences as one mapped array."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retort.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_AT_ONCE = 10_000
"""Sentences tokenised in one call."""


def train_wordpiece(sentences: Iterable[str], size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A tokenizer like BERT's, of at most `size` pieces, with the five special ones.

    Args:
        lowercase: whether it lowers what it reads, as BERT's uncased ones do (accents go, too).
    """
    from transformers import BertTokenizerFast

    blank = BertTokenizerFast(do_lower_case=lowercase)
    return blank.train_new_from_iterator(sentences, size, show_progress=False)


class PieceStore:
    """Sentences as ids, special pieces included, mapped from disk.

    Args:
        folder: that :meth:`write` wrote.

    Attributes:
        lengths: pieces of each sentence.
    """

    def __init__(self, folder: Path) -> None:
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self.lengths: NDArray[np.int64] = np.diff(self._offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """The ids of one sentence."""
        return self._ids[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)

    @staticmethod
    def write(
        folder: Path,
        sentences: Iterable[str],
        tokenizer: PreTrainedTokenizerFast,
        longest: int,
        progress: Callable[[int], None],
    ) -> None:
        """Tokenise `sentences` into `folder`, the end of what has more than `longest` pieces cut off.

        Args:
            progress: called with the number of sentences so far.

        Raises:
            UserError: there is no sentence.
        """
        kind = np.uint16 if len(tokenizer) <= 2**16 else np.int32
        parts: list[NDArray[np.generic]] = []
        lengths: list[int] = []
        for batch in _batched(sentences, _AT_ONCE):
            rows = tokenizer(
                batch,
                truncation=True,
                max_length=longest,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            parts.append(np.fromiter(itertools.chain.from_iterable(rows), kind))
            lengths += map(len, rows)
            progress(len(lengths))
        if not lengths:
            raise UserError("no sentence is left to learn from", remedy="Name more text, or hold out less")
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", np.concatenate(parts))
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


class PieceMix:
    """Several stores as one.

    Args:
        stores: numbered through, one after the other.
        repeats: how often an epoch holds each.

    Attributes:
        lengths: pieces of each sentence.
        epoch: the numbers of the sentences of an epoch.
    """

    def __init__(self, stores: Sequence[PieceStore], repeats: Sequence[int]) -> None:
        self._stores = stores
        self._starts = np.cumsum([0, *(len(store) for store in stores)])
        self.lengths = np.concatenate([store.lengths for store in stores])
        numbers = [np.arange(*bounds) for bounds in itertools.pairwise(self._starts)]
        self.epoch: NDArray[np.int64] = np.concatenate([np.tile(*each) for each in zip(numbers, repeats)])

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """The ids of one sentence."""
        store = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._stores[store][index - int(self._starts[store])]


def length_batches(
    lengths: NDArray[np.int64], indices: NDArray[np.int64], pieces: int, draw: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Put sentences of like length together, at most `pieces` a batch with padding, in random order.

    Which sentences of one length meet is drawn anew at each call.

    Args:
        lengths: of all sentences.
        indices: of the sentences to batch; one that stands twice is batched twice.
        draw: what decides.
    """
    order = draw.permutation(indices)
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches, start = [], 0
    while start < len(order):
        stop = start + max(pieces // int(lengths[order[start]]), 1)
        batches.append(order[start:stop])
        start = stop
    return [batches[index] for index in draw.permutation(len(batches))]


def _batched(items: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
