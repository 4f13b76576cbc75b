"""Whisper's byte-level BPE as the student's vocabulary: all of its pieces, or a subset."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retort.common.errors import UserError
from retort.text.normalise import UNKNOWN_TEXT
from retort.text.tokenizers import EOS, SPECIAL, UNKNOWN, Piece, Tokenizer, strip_span, without_first_space
from retort.text.vocabulary import open_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_FILE = "tokenizer.whisper.json"
_START, _END, _NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_BYTE_PIECES = 256
"""The first pieces are single bytes, which can spell every text."""


class WhisperTokenizer(Tokenizer):
    """Whisper's pieces as ids. Text is tokenised with a leading space, as in Whisper's output.

    A piece that is outside a smaller vocabulary is spelled in bytes. A character of several pieces is assigned to the last
    of them.

    Args:
        backend: Whisper's tokenizer; a copy is used.
        pieces: Whisper's ids in the order of this vocabulary.
        language: code of the prompt, such as `en`; empty for an English-only model.
        suppressed: Whisper's ids that decoding must not output; those outside the vocabulary are ignored.
        begin_suppressed: the same for the first token of a text.

    Attributes:
        pieces_of_whisper: Whisper's id of each id; for special ones `<|endoftext|>` for EOS,
            `<|startoftranscript|>`, which no text has, for the others.
        prompt: Whisper's ids before a text.
        spellings: bytes of each id, none of the special ones.
        suppressed: ids that decoding must not output.
        begin_suppressed: ids that must not be the first of a text.
        whisper_suppressed, whisper_begin_suppressed: the same as Whisper's ids, those outside the vocabulary too.
        ordinary: number of Whisper's pieces, which come before its special tokens.

    Raises:
        UserError: it is not a tokenizer of Whisper, or it does not support the language.
    """

    kind = "whisper"

    def __init__(
        self,
        backend: Backend,
        pieces: Sequence[int],
        language: str,
        suppressed: Iterable[int] = (),
        begin_suppressed: Iterable[int] = (),
    ) -> None:
        self.backend = type(backend).from_str(backend.to_str())
        self.language = language
        self.prompt = whisper_prompt(self.backend, language)
        tokens = [self.backend.id_to_token(each) for each in pieces]
        super().__init__([token or "" for token in tokens])
        start, end = self.prompt[0], special_id(self.backend, _END)
        self.ordinary: int = end
        self.pieces_of_whisper = [end if each == EOS else start for each in range(len(SPECIAL))] + [*pieces]
        self._own = {each: len(SPECIAL) + index for index, each in enumerate(pieces)}
        values = _byte_values()
        self.spellings = [b""] * len(SPECIAL) + [
            bytes(values[character] for character in symbol) for symbol in self.symbols[len(SPECIAL) :]
        ]
        self._byte_ids = {spelling: index for index, spelling in enumerate(self.spellings) if len(spelling) == 1}
        self.whisper_suppressed, self.whisper_begin_suppressed = sorted(set(suppressed)), sorted(set(begin_suppressed))
        known = {**self._own, end: EOS}
        self.suppressed = [known[each] for each in self.whisper_suppressed if each in known]
        self.begin_suppressed = [known[each] for each in self.whisper_begin_suppressed if each in known]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        backend: Backend,
        language: str,
        size: int | None = None,
        suppressed: Iterable[int] = (),
        begin_suppressed: Iterable[int] = (),
        more_texts: Iterable[str] = (),
    ) -> WhisperTokenizer:
        """All pieces of Whisper, or `size` ids: those of single bytes, those of the texts, and the commonest others.

        The most frequent others are those of `more_texts`, by their number there, then Whisper's first pieces. Pieces of
        the texts are not suppressed.

        Raises:
            UserError: as the class, or `size` is too small for the texts or exceeds the number of pieces.
        """
        ordinary = special_id(backend, _END)
        if ordinary is None:
            raise UserError("a tokenizer that is not Whisper's: it has no <|endoftext|>")
        whole = cls(backend, range(ordinary), language)
        counts = Counter(each for text in texts for each in whole.encode(text))
        seen = {whole.pieces_of_whisper[each] for each in counts}
        pieces: Sequence[int] = range(ordinary)
        if size is not None:
            needed = seen | set(range(_BYTE_PIECES))
            if not len(needed) <= size - len(SPECIAL) <= ordinary:
                raise UserError(
                    f"tokenizer.size is {size}, but must be from {len(needed) + len(SPECIAL)} to "
                    f"{ordinary + len(SPECIAL)} for Whisper's pieces",
                    remedy=f"Set tokenizer.size to {len(needed) + len(SPECIAL)} or more, or remove it",
                )
            # Ids follow the order of the merges, in which the most frequent pieces come first.
            common = Counter(each for text in more_texts for each in whole.encode(text)).most_common()
            ordered = dict.fromkeys([*(whole.pieces_of_whisper[each] for each, _ in common), *range(ordinary)])
            others = (each for each in ordered if each not in needed)
            room = size - len(SPECIAL) - len(needed)
            pieces = sorted(needed | {each for each, _ in zip(others, range(room))})
        return cls(backend, pieces, language, set(suppressed) - seen, set(begin_suppressed) - {*seen})

    def pieces(self, text: str) -> list[Piece]:
        found: list[Piece] = []
        if not text:
            return found
        ends = _character_ends(text)
        at, last = -1, 0  # Whisper adds a space before the text
        for each in self._ids_of(" " + text):
            at += len(self.spellings[each])
            end = last
            while end < len(ends) and ends[end] <= at:
                end += 1
            found.append(Piece(each, *strip_span(text, last, end)))
            last = end
        return found

    def _ids_of(self, text: str) -> Iterable[int]:
        """Encode without special tokens, even if the text contains their names."""
        for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text):
            for token in self.backend.model.tokenize(word):
                if (own := self._own.get(token.id)) is not None:
                    yield own
                else:
                    values = _byte_values()
                    yield from (self._byte_ids[bytes([values[each]])] for each in token.value)

    def _texts(self, ids: list[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = []
        for index, each in enumerate(ids):
            text = decoder.decode(self.spellings[each], final=index == len(ids) - 1)
            texts.append(text + UNKNOWN_TEXT if each == UNKNOWN else text)
        return without_first_space(texts)

    def _state(self) -> dict[str, Any]:
        pieces = self.pieces_of_whisper[len(SPECIAL) :]
        whole = pieces == list(range(self.ordinary))
        return {
            "language": self.language,
            "pieces": None if whole else pieces,
            "suppressed": self.whisper_suppressed,
            "begin_suppressed": self.whisper_begin_suppressed,
        }

    def _files(self) -> dict[str, bytes]:
        return {_FILE: self.backend.to_str().encode()}

    @classmethod
    def _open(cls, state: dict[str, Any], folder: Path, decode_only: bool = False) -> WhisperTokenizer:
        backend = open_vocabulary((folder / _FILE).read_text(encoding="utf-8"), decode_only)
        pieces = state["pieces"]
        if pieces is None:
            pieces = range(special_id(backend, _END))
        return cls(backend, pieces, state["language"], state["suppressed"], state["begin_suppressed"])


def whisper_prompt(backend: Backend, language: str) -> list[int]:
    """Whisper's ids before a text: start, language, task, no timestamps; without `language` only start and the last.

    Raises:
        UserError: it is not a tokenizer of Whisper, or it does not support the language.
    """
    names = [_START, *((f"<|{language}|>", "<|transcribe|>") if language else ()), _NO_TIMESTAMPS]
    if language and backend.token_to_id(f"<|{language}|>") is None:
        raise UserError(
            f"tokenizer.language is '{language}', which this Whisper does not support",
            remedy="Set a code such as en or zh",
        )
    return [special_id(backend, name) for name in names]


def special_id(backend: Backend, name: str) -> int:
    """The id of a special token.

    Raises:
        UserError: the tokenizer is not Whisper's.
    """
    found: int | None = backend.token_to_id(name)
    if found is None:
        raise UserError(f"a tokenizer that is not Whisper's: it has no {name}")
    return found


def _character_ends(text: str) -> list[int]:
    """Number of UTF-8 bytes up to the end of each character."""
    ends, at = [], 0
    for character in text:
        at += len(character.encode("utf-8", "replace"))
        ends.append(at)
    return ends


_VALUES: dict[str, int] = {}


def _byte_values() -> dict[str, int]:
    """The byte of each character of a byte-level piece (Radford et al. 2019, GPT-2)."""
    if not _VALUES:
        shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        hidden = [each for each in range(256) if each not in shown]
        _VALUES.update({chr(each): each for each in shown})
        _VALUES.update({chr(256 + index): each for index, each in enumerate(hidden)})
    return _VALUES
