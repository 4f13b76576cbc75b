"""Training of tokenizers, and memory-mapped stores of tokenised sentences."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.lm.config import PieceConfig
from retort.text.tokenizers import EOS, BpeTokenizer, CharacterTokenizer, Tokenizer, WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_AT_ONCE = 10_000
"""Sentences per call of the tokenizer."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PLANE = 65_534
_PLANES = (0xF0000, 0x100000)
"""Start of the two private planes of Unicode; each has `_PLANE` codes."""


def train_wordpiece(sentences: Iterable[str], size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer as BERT's, of at most `size` tokens including the five special ones; deterministic.

    Args:
        lowercase: whether to lowercase and remove accents, as BERT's uncased tokenizers.
    """
    from transformers import BertTokenizerFast

    blank = BertTokenizerFast(do_lower_case=lowercase)
    counts = Counter(
        word
        for sentence in sentences
        for word, _ in blank.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
            blank.backend_tokenizer.normalizer.normalize_str(sentence)
        )
    )
    pieces = [*_SPECIAL, *_wordpieces(counts, size - len(_SPECIAL))]
    return BertTokenizerFast(
        vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=lowercase
    )


def _wordpieces(counts: Mapping[str, int], size: int) -> list[str]:
    """WordPiece tokens by merging the most frequent pair, with `##` before those that continue a word.

    The WordPiece trainer of `tokenizers` orders characters inside words by a hash table, so ties are resolved
    differently from call to call. Its BPE trainer orders them by code point. It is therefore given words in
    which every character has two codes, for the start and for the inside of a word, in two private planes of
    Unicode.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    characters = sorted({character for word in counts for character in word})
    if len(characters) > _PLANE:
        raise UserError(f"the text has {len(characters):,} different characters", remedy="Normalise it")
    begin, within = (
        {character: chr(start + number) for number, character in enumerate(characters)} for start in _PLANES
    )
    read = {code: character for character, code in begin.items()}
    read |= {code: f"##{character}" for character, code in within.items()}
    coded = (
        [begin[word[0]] + "".join(within[character] for character in word[1:])] * count
        for word, count in sorted(counts.items())
    )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size, 0), initial_alphabet=list(begin.values()), show_progress=False
    )
    backend.train_from_iterator((" ".join(each) for each in coded), trainer)
    found = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return ["".join([read[code[0]], *(read[each][2:] for each in code[1:])]) for code, _ in found]


def word_level(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's five special tokens and whole words separated by spaces.

    Args:
        words: words in the order of their ids, which begin at 5.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate([*_SPECIAL, *words])}
    backend = Backend(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{each.strip('[]').lower()}_token": each for each in _SPECIAL},
    )


def train_pieces(sentences: Iterable[str], config: PieceConfig) -> Tokenizer:
    """Train a tokenizer of the recipe's kind, in the form of a student's tokenizer.

    Raises:
        UserError: the text is too small for the vocabulary size (BPE).
    """
    if config.kind == "bpe":
        return BpeTokenizer.train(sentences, config.size)
    return (
        WordTokenizer.train(sentences, config.size)
        if config.kind == "words"
        else CharacterTokenizer.train(sentences)
    )


@dataclass(frozen=True)
class Cutter:
    """Converts sentences to rows of ids.

    Attributes:
        cut: function from sentences to ids, including special tokens.
        size: number of ids.
        identity: JSON description that distinguishes its rows from those of others.
    """

    cut: Callable[[Sequence[str]], list[list[int]]]
    size: int
    identity: dict[str, object]


def causal_cutter(tokenizer: Tokenizer, longest: int) -> Cutter:
    """Rows of `EOS tokens EOS`, truncated to `longest`."""

    def cut(sentences: Sequence[str]) -> list[list[int]]:
        return [[EOS, *tokenizer.encode(each), EOS][:longest] for each in sentences]

    return Cutter(cut, tokenizer.size, {"tokenizer": tokenizer.fingerprint(), "longest": longest})


class PieceStore:
    """Sentences as ids, including special tokens, memory-mapped.

    Args:
        folder: folder that :meth:`write` wrote.

    Attributes:
        lengths: number of tokens of each sentence.
    """

    def __init__(self, folder: Path) -> None:
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self.lengths: NDArray[np.int64] = np.diff(self._offsets)
        if self._offsets[0] != 0 or self._offsets[-1] != len(self._ids) or (self.lengths < 0).any():
            raise ValueError(f"{folder}: ids.npy and offsets.npy do not belong together")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ids(self) -> NDArray[np.generic]:
        """The ids of all sentences, concatenated."""
        whole: NDArray[np.generic] = self._ids
        return whole

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """The ids of one sentence."""
        return self._ids[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)

    @staticmethod
    def write(
        folder: Path,
        sentences: Iterable[str],
        cutter: Cutter,
        progress: Callable[[int], None],
    ) -> None:
        """Tokenise `sentences` and write them to `folder`.

        Args:
            progress: called with the number of sentences so far.

        Raises:
            UserError: there is no sentence.
        """
        kind = np.uint16 if cutter.size <= 2**16 else np.int32
        parts: list[NDArray[np.generic]] = []
        lengths: list[int] = []
        for batch in _batched(sentences, _AT_ONCE):
            rows = cutter.cut(batch)
            parts.append(np.fromiter(itertools.chain.from_iterable(rows), kind))
            lengths += map(len, rows)
            progress(len(lengths))
        if not lengths:
            raise UserError("no sentence is left for training", remedy="Give more text, or hold out less")
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", np.concatenate(parts))
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


class PieceMix:
    """Concatenation of several stores.

    Args:
        stores: stores, whose sentences are numbered consecutively.
        repeats: repetitions of each store per epoch.

    Attributes:
        lengths: number of tokens of each sentence.
        epoch: sentence numbers of an epoch.
    """

    def __init__(self, stores: Sequence[PieceStore], repeats: Sequence[int]) -> None:
        self._stores, self._repeats = stores, repeats
        self._starts = np.cumsum([0, *(len(store) for store in stores)])
        self.lengths = np.concatenate([store.lengths for store in stores])
        numbers = [np.arange(*bounds) for bounds in itertools.pairwise(self._starts)]
        self.epoch: NDArray[np.int64] = np.concatenate([np.tile(*each) for each in zip(numbers, repeats)])

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """The ids of one sentence."""
        store = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._stores[store][index - int(self._starts[store])]

    def counted(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of all sentences, concatenated, and the repetitions of each sentence per epoch."""
        ids = np.concatenate([store.ids.astype(np.int32) for store in self._stores])
        return ids, np.repeat(self._repeats, [len(store) for store in self._stores])


def length_batches(
    lengths: NDArray[np.int64], indices: NDArray[np.int64], pieces: int, draw: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Batches of sentences of similar length, of at most `pieces` tokens with padding, in random order.

    The order of sentences with equal length is drawn at each call.

    Args:
        lengths: lengths of all sentences.
        indices: indices of the sentences to batch; repetitions are kept.
        draw: random generator.
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
