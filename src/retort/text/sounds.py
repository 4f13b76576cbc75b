"""Division of texts into units whose sound is known: classes of tokens that may share acoustic examples.

A unit is the fewest consecutive tokens that spell whole characters. Without pronunciations, only units of the same tokens
have the same sound. With pinyin, Chinese homophones have, however many tokens spell them: in Whisper's multilingual
vocabulary, many characters are two or three pieces of bytes, which have no sound of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retort.text.homophones import readings
from retort.text.normalise import is_cjk
from retort.text.tokenizers import Piece

END_SOUND = "<eos>"
"""The sound of the end of an utterance."""


class Unit(NamedTuple):
    """The tokens `[first, last)` of a text, with their sound.

    Attributes:
        parts: the sounds of its characters, if they are more than one and each has a sound of its own.
    """

    first: int
    last: int
    sound: str
    parts: tuple[str, ...] = ()


def units(text: str, pieces: Sequence[Piece], sounds: str) -> list[Unit]:
    """The units of a text, which together are all of its tokens.

    Args:
        pieces: the text's tokens with their characters, without EOS.
        sounds: what a sound is, as `text_injection.sounds`.

    Raises:
        UserError: pypinyin is not installed, and `sounds` needs it.
    """
    read = [""] * len(text) if sounds == "token" else readings(text, tones=sounds == "pinyin")
    found, first = [], 0
    for index, piece in enumerate(pieces):
        whole = piece.end > piece.start
        if not whole and index < len(pieces) - 1:
            continue  # a part of the next character
        own = read[piece.start : piece.end]
        if whole and all(own) and all(map(is_cjk, text[piece.start : piece.end])):
            found.append(Unit(first, index + 1, " ".join(own), tuple(own) if len(own) > 1 else ()))
        else:
            ids = ",".join(str(each.id) for each in pieces[first : index + 1])
            found.append(Unit(first, index + 1, f"#{ids}"))
        first = index + 1
    return found
