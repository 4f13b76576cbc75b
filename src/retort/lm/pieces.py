"""Sentences as pieces: tokenizers of one's own, and a million sentences as one mapped array."""

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
"""Sentences tokenised in one call."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PLANE = 65_534
_PLANES = (0xF0000, 0x100000)
"""Where the two private planes of Unicode begin, and how many codes each has."""


def train_wordpiece(sentences: Iterable[str], size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A tokenizer like BERT's, of at most `size` pieces, with the five special ones; the same of the same sentences.

    Args:
        lowercase: whether it lowers what it reads, as BERT's uncased ones do (accents go, too).
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
    """Pieces of words by merging the most frequent pair, `##` before those that continue a word.

    The trainer of `tokenizers` for WordPiece numbers the characters within words in the order of a hash table, which
    differs from call to call, and with it what is taken among equals. Its trainer for BPE numbers them by their code,
    so that is given words in which every character, once at the start of a word and once within, has a code of its
    own: two planes of Unicode that texts do not use.
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
    """A tokenizer with BERT's five special pieces whose other pieces are whole words between spaces, as they are.

    Args:
        words: in the order of their ids, which begin at 5.
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
    """A tokenizer as a student's, of the kind that the recipe names.

    Raises:
        UserError: the text cannot give the size (BPE).
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
    """How sentences become rows of ids.

    Attributes:
        cut: sentences to ids, special pieces included.
        size: number of ids.
        identity: what tells its rows from those of others, as JSON can hold it.
    """

    cut: Callable[[Sequence[str]], list[list[int]]]
    size: int
    identity: dict[str, object]


def causal_cutter(tokenizer: Tokenizer, longest: int) -> Cutter:
    """`EOS pieces EOS`, of a sentence that has more than `longest` its beginning."""

    def cut(sentences: Sequence[str]) -> list[list[int]]:
        return [[EOS, *tokenizer.encode(each), EOS][:longest] for each in sentences]

    return Cutter(cut, tokenizer.size, {"tokenizer": tokenizer.fingerprint(), "longest": longest})


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
        if self._offsets[0] != 0 or self._offsets[-1] != len(self._ids) or (self.lengths < 0).any():
            raise ValueError(f"{folder}: ids.npy and offsets.npy do not belong together")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ids(self) -> NDArray[np.generic]:
        """The ids of all sentences, one after the other."""
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
        """Write `sentences`, cut into pieces, into `folder`.

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
        """The ids of all sentences, one after the other, and how often an epoch holds each sentence."""
        ids = np.concatenate([store.ids.astype(np.int32) for store in self._stores])
        return ids, np.repeat(self._repeats, [len(store) for store in self._stores])


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
