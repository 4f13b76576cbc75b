"""Text processing: normalisation, tokenizers, alignment of tokenizations."""

from retort.text.normalise import Normaliser
from retort.text.teacher_pieces import TeacherTokenizer
from retort.text.tokenizer_io import open_tokenizer, train_tokenizer
from retort.text.tokenizers import (
    BLANK,
    EOS,
    PAD,
    UNKNOWN,
    BpeTokenizer,
    CharacterTokenizer,
    Piece,
    Tokenizer,
    Word,
)

__all__ = [
    "BLANK",
    "EOS",
    "PAD",
    "UNKNOWN",
    "BpeTokenizer",
    "CharacterTokenizer",
    "Normaliser",
    "Piece",
    "TeacherTokenizer",
    "Tokenizer",
    "Word",
    "open_tokenizer",
    "train_tokenizer",
]
