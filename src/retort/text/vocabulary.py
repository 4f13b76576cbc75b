"""Vocabularies of stored tokenizers, for decoding where the packages that tokenise text are not installed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from retort.common.errors import UserError
from retort.common.json_reader import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


@dataclass(frozen=True)
class AddedPiece:
    """A token that was added to a vocabulary; `special` ones are not text."""

    content: str
    special: bool


class Vocabulary:
    """The part of `tokenizers.Tokenizer` that decoding needs.

    Args:
        content: content of a `tokenizer.json`.
    """

    def __init__(self, content: str) -> None:
        self._content = content
        parsed = parse_json(content)
        own = parsed["model"]["vocab"]
        pieces = {each[0]: index for index, each in enumerate(own)} if isinstance(own, list) else dict(own)
        self._added = {
            int(each["id"]): AddedPiece(each["content"], bool(each["special"]))
            for each in parsed["added_tokens"] or []
        }
        self._ids = {**pieces, **{each.content: number for number, each in self._added.items()}}
        self._pieces = {number: piece for piece, number in self._ids.items()}
        self.normalizer = None

    @classmethod
    def from_str(cls, content: str) -> Vocabulary:
        return _opened(content)

    def to_str(self) -> str:
        return self._content

    def no_truncation(self) -> None:
        return

    def no_padding(self) -> None:
        return

    def id_to_token(self, number: int) -> str | None:
        return self._pieces.get(number)

    def token_to_id(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def get_added_tokens_decoder(self) -> dict[int, AddedPiece]:
        return dict(self._added)

    def encode(self, text: str, **_: Any) -> NoReturn:
        """Raise an error."""
        raise UserError("this tokenizer was opened for decoding only")


@lru_cache(maxsize=1)
def _opened(content: str) -> Vocabulary:
    return Vocabulary(content)


def for_decoding(content: bytes) -> bytes:
    """A `tokenizer.json` without the merges of byte-pair encoding, which only the encoding of texts needs."""
    parsed = parse_json(content)
    parsed["model"].pop("merges", None)
    return json.dumps(parsed, ensure_ascii=False).encode()


def open_vocabulary(content: str, decode_only: bool) -> Backend:
    """The tokenizer in a `tokenizer.json`, or with `decode_only` its vocabulary, which opens in a tenth of the time."""
    if decode_only:
        found: Any = Vocabulary.from_str(content)
        return found
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(content)


def sentencepiece_pieces(model: bytes) -> list[str]:
    """The pieces of a serialised sentencepiece model, in the order of their ids.

    Source: `sentencepiece_model.proto`: field 1 of the model are its pieces, field 1 of a piece is its text.

    Raises:
        ValueError: it is not such a model.
    """
    return [
        bytes(text).decode()
        for piece in _fields(model, 1)
        for text in _fields(piece, 1)
    ]  # fmt: skip


def _fields(message: bytes, wanted: int) -> list[bytes]:
    """The values of a field of bytes in a message of Protocol Buffers."""
    found, position = [], 0
    while position < len(message):
        key, position = _number(message, position)
        kind = key & 7
        if kind == 0:
            _, position = _number(message, position)
        elif kind == 2:
            size, position = _number(message, position)
            if position + size > len(message):
                raise ValueError("a truncated message")
            if key >> 3 == wanted:
                found.append(message[position : position + size])
            position += size
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of type {kind}")
    return found


def _number(message: bytes, position: int) -> tuple[int, int]:
    """A number of variable length, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("a truncated message")
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
