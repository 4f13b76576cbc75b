"""Tokenizers of the student: conversion of text to ids and back, with the character span of each piece.

Three kinds with the same interface: characters, sentencepiece BPE, and the teacher's pieces that occur in the
training text (:mod:`retort.text.teacher_pieces`). Ids 0 to 3 are special in each. Text is
expected to be normalised (:mod:`retort.text.normalise`).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.text.normalise import UNKNOWN_TEXT, is_cjk
from retort.text.vocabulary import for_decoding, sentencepiece_pieces

BLANK, PAD, EOS, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<blank>", "<pad>", "<eos>", "<unk>")
SPACE = "▁"
"""Symbol for a space inside pieces, as in sentencepiece."""

FILE, _MODEL_FILE = "tokenizer.json", "tokenizer.model"
FORMAT = 1


class Piece(NamedTuple):
    """A token of a text and its characters `[start, end)`."""

    id: int
    start: int
    end: int


class Word(NamedTuple):
    """A word of decoded text, from the ids `first` to `last` (inclusive)."""

    text: str
    first: int
    last: int


class Tokenizer(ABC):
    """A vocabulary. `symbols[id]` is the name of each id; `size` includes the special ids."""

    kind: ClassVar[str]

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = [*SPECIAL, *symbols]
        self._ids = {symbol: len(SPECIAL) + index for index, symbol in enumerate(symbols)}

    @property
    def size(self) -> int:
        return len(self.symbols)

    @abstractmethod
    def pieces(self, text: str) -> list[Piece]:
        """The ids of `encode` with their character spans.

        Spans are sorted, contain every non-space character exactly once, and neither start nor end with
        a space, except for pieces of a single space. They are empty for pieces without characters (such as a
        leading "▁").
        """

    @abstractmethod
    def _texts(self, ids: list[int]) -> list[str]: ...

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @classmethod
    @abstractmethod
    def _open(cls, state: dict[str, Any], folder: Path, decode_only: bool = False) -> Tokenizer: ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without EOS; text outside the vocabulary is `UNKNOWN`."""
        return [piece.id for piece in self.pieces(text)]

    def surfaces(self, ids: Iterable[int]) -> list[str]:
        """Contribution of each position to the decoded text; "" for blank, pad and EOS, "⁇" for unknown.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        checked = [int(each) for each in ids]
        if bad := [each for each in checked if not 0 <= each < self.size]:
            raise ValueError(f"id {bad[0]} is outside the vocabulary of {self.size}")
        return self._texts(checked)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; the inverse of `encode` for normalised text within the vocabulary."""
        return "".join(self.surfaces(ids))

    def words(self, ids: Iterable[int]) -> list[Word]:
        """Words of the decoded text with their positions in `ids`.

        Words are separated by spaces, and a CJK character is a word. A position that is only a space or
        special belongs to none; a piece of several CJK characters belongs to several.
        """
        words: list[Word] = []
        joins = marks = False
        for index, surface in enumerate(self.surfaces(ids)):
            for character in surface:
                if character.isspace():
                    joins = marks = False
                elif (marks and unicodedata.category(character)[0] == "M") or (
                    joins and not is_cjk(character)
                ):
                    words[-1] = Word(words[-1].text + character, words[-1].first, index)
                else:
                    words.append(Word(character, index, index))
                    joins, marks = not is_cjk(character), True
        return words

    def unknown(self, text: str) -> list[str]:
        """The parts of a text that are outside the vocabulary, in order."""
        return [text[piece.start : piece.end] for piece in self.pieces(text) if piece.id == UNKNOWN]

    def save(self, folder: str | Path, *, decode_only: bool = False) -> None:
        """Write the files for :func:`open_tokenizer` into `folder`, which is created if missing.

        Args:
            decode_only: leave out what only the encoding of texts needs.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            reduced = decode_only and name.endswith(".json")
            write_whole(Path(folder) / name, for_decoding(content) if reduced else content)
        state = {"format": FORMAT, "kind": self.kind, **self._state()}
        write_whole(Path(folder) / FILE, json.dumps(state, ensure_ascii=False, indent=1))

    def fingerprint(self) -> str:
        """Hash of the files of :meth:`save`, 32 hex digits: equal for tokenizers with equal output."""
        digest = hashlib.sha256(json.dumps([self.kind, self._state()], sort_keys=True).encode())
        for name, content in sorted(self._files().items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()[:32]

    def _files(self) -> dict[str, bytes]:
        return {}


class CharacterTokenizer(Tokenizer):
    """One id per code point; the space is "▁". Ids are ordered by frequency in the training text, then by code point."""

    kind = "characters"

    def __init__(self, symbols: Sequence[str]) -> None:
        if any(len(symbol) != 1 for symbol in symbols) or len(set(symbols)) != len(symbols):
            raise ValueError("symbols are single characters, each once")
        super().__init__(symbols)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharacterTokenizer:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_without_reserved(text))
        ordered = sorted(counts, key=lambda character: (-counts[character], character))
        return cls([SPACE if character == " " else character for character in ordered])

    def pieces(self, text: str) -> list[Piece]:
        found = []
        for index, character in enumerate(text):
            symbol = {" ": SPACE, SPACE: UNKNOWN_TEXT}.get(character, character)
            found.append(Piece(self._ids.get(symbol, UNKNOWN), index, index + 1))
        return found

    def _texts(self, ids: list[int]) -> list[str]:
        return [_text(self.symbols[each], each) for each in ids]

    def _state(self) -> dict[str, Any]:
        return {"symbols": self.symbols[len(SPECIAL) :]}

    @classmethod
    def _open(cls, state: dict[str, Any], folder: Path, decode_only: bool = False) -> CharacterTokenizer:
        return cls(state["symbols"])


class WordTokenizer(Tokenizer):
    """One id per space-separated word, for the most frequent words of the training text; only for language models."""

    kind = "words"

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> WordTokenizer:
        """At most `size` ids, special ones included."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_without_reserved(text).split())
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered[: max(size - len(SPECIAL), 0)])

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, UNKNOWN) for word in text.split()]  # fast, for millions of sentences

    def pieces(self, text: str) -> list[Piece]:
        return [
            Piece(self._ids.get(found.group(), UNKNOWN), *found.span()) for found in re.finditer(r"\S+", text)
        ]

    def _texts(self, ids: list[int]) -> list[str]:
        texts = [f" {text}" if (text := _text(self.symbols[each], each)) else "" for each in ids]
        return without_first_space(texts)

    def _state(self) -> dict[str, Any]:
        return {"symbols": self.symbols[len(SPECIAL) :]}

    @classmethod
    def _open(cls, state: dict[str, Any], folder: Path, decode_only: bool = False) -> WordTokenizer:
        return cls(state["symbols"])


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding by sentencepiece, without its normalisation; consecutive unknown characters are one id.

    Args:
        model: a serialised sentencepiece model whose first four ids are the special ones.
        decode_only: do not require the package; texts cannot be encoded.
    """

    kind = "bpe"

    def __init__(self, model: bytes, decode_only: bool = False) -> None:
        if not model:  # sentencepiece treats empty bytes as no argument, and fails only when used
            raise ValueError("the sentencepiece model is empty")
        self._model = model
        self._processor: Any = None
        if decode_only:
            symbols = sentencepiece_pieces(model)
        else:
            import sentencepiece

            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            symbols = [self._processor.id_to_piece(each) for each in range(self._processor.get_piece_size())]
        if tuple(symbols[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"the sentencepiece model does not begin with {' '.join(SPECIAL)}")
        super().__init__(symbols[len(SPECIAL) :])

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> BpeTokenizer:
        """A vocabulary of exactly `size`, special ids included; deterministic.

        Raises:
            UserError: the text has fewer possible pieces, or more characters, than `size`.
        """
        import sentencepiece

        lines = [_without_reserved(text) for text in texts]
        smallest = len(SPECIAL) + len(set("".join(lines)) - {" "} | {SPACE})
        if size < smallest:
            raise UserError(
                f"tokenizer.size is {size}, but the characters of the training text need {smallest}",
                remedy=f"Set tokenizer.size to {smallest} or more",
            )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=size,
            normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=1.0,
            byte_fallback=False, bos_id=BLANK, pad_id=PAD, eos_id=EOS, unk_id=UNKNOWN,
            bos_piece=SPECIAL[BLANK], pad_piece=SPECIAL[PAD], eos_piece=SPECIAL[EOS],
            unk_piece=SPECIAL[UNKNOWN],
            hard_vocab_limit=False, max_sentence_length=1 << 24, num_threads=1, minloglevel=2,
        )  # fmt: skip
        result = cls(model.getvalue())
        if result.size != size:
            raise UserError(
                f"tokenizer.size is {size}, but the training text has no more than {result.size} pieces",
                remedy=f"Set tokenizer.size to {result.size} or less",
            )
        return result

    def encode(self, text: str) -> list[int]:
        if self._processor is None:
            raise UserError("this tokenizer was opened for decoding only")
        # To sentencepiece "▁" is a space; here it is an unknown character.
        found: list[int] = self._processor.encode(text.replace(SPACE, UNKNOWN_TEXT))
        return found

    def pieces(self, text: str) -> list[Piece]:
        text = text.replace(SPACE, UNKNOWN_TEXT)
        found, end = [], -1  # sentencepiece adds a space before the text
        for each, surface in zip(self._processor.encode(text), self._processor.encode(text, out_type=str)):
            start, end = end, end + len(surface)
            found.append(Piece(each, *strip_span(text, max(start, 0), end)))
        return found

    def _texts(self, ids: list[int]) -> list[str]:
        return without_first_space([_text(self.symbols[each], each) for each in ids])

    def _state(self) -> dict[str, Any]:
        return {"size": self.size}

    def _files(self) -> dict[str, bytes]:
        return {_MODEL_FILE: self._model}

    @classmethod
    def _open(cls, state: dict[str, Any], folder: Path, decode_only: bool = False) -> BpeTokenizer:
        result = cls((folder / _MODEL_FILE).read_bytes(), decode_only)
        if result.size != state["size"]:
            raise ValueError(f"{_MODEL_FILE} has {result.size} pieces, {FILE} states {state['size']}")
        return result


def _text(symbol: str, each: int) -> str:
    if each < UNKNOWN:
        return ""
    return UNKNOWN_TEXT if each == UNKNOWN else symbol.replace(SPACE, " ")


def without_first_space(texts: list[str]) -> list[str]:
    first = next((index for index, text in enumerate(texts) if text), None)
    if first is not None:
        texts[first] = texts[first].removeprefix(" ")
    return texts


def _without_reserved(text: str) -> str:
    return text.replace(SPACE, " ").replace(UNKNOWN_TEXT, " ")


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the spaces at its ends; a span of only spaces is not changed."""
    inner = text[start:end]
    if not inner.strip():
        return start, end
    return start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())
