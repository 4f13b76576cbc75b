"""An alignment: which words, phones and senones an utterance is, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.phones import SILENCE
from retort.alignment.tree import SenoneTree
from retort.alignment.utterance import UtteranceHmm
from retort.common.errors import BadUtterance

Unit = Literal["senone", "phone", "word"]


class Timed(NamedTuple):
    symbol: str
    start: int
    """Frame."""
    frames: int


@dataclass
class Alignment:
    """Of one utterance of T frames."""

    id: str
    words: list[Timed]
    """In their order, silences between them."""
    phones: list[Timed]
    """From frame 0 to T without a gap; silences are `SIL`."""
    senones: NDArray[np.int32]
    """(T,)"""


def from_path(
    name: str, words: Sequence[str], hmm: UtteranceHmm, states: NDArray[np.integer], symbols: Sequence[str]
) -> Alignment:
    """What a path through the HMM of a transcript says.

    Args:
        words: the transcript.
        states: `(T,)`, the path.
        symbols: of the phone ids.
    """
    places = hmm.places[states]
    starts, frames = runs(places)
    met = places[starts]
    phones = [
        Timed(symbols[phone], start, count) for phone, start, count in zip(hmm.phones[met], starts, frames)
    ]
    timed_words: list[Timed] = []
    owners = hmm.words[met].tolist()
    for owner, before, phone in zip(owners, [-1, *owners], phones):
        if owner >= 0 and owner == before:
            timed_words[-1] = Timed(timed_words[-1].symbol, timed_words[-1].start, timed_words[-1].frames + phone.frames)
        elif owner >= 0:
            timed_words.append(Timed(words[owner], phone.start, phone.frames))
    return Alignment(name, timed_words, phones, hmm.senones[states])


def runs(values: NDArray[np.integer]) -> tuple[list[int], list[int]]:
    """Where runs of equal values start, and how long they are."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return starts.tolist(), np.diff(starts, append=len(values)).tolist()


def from_phones(name: str, words: list[Timed], phones: list[Timed], tree: SenoneTree) -> Alignment:
    """Senones for phones whose times are known, such as those of a CTM: each phone is divided evenly.

    Raises:
        BadUtterance: a phone that the tree lacks or a gap between phones.
    """
    senones: list[int] = []
    ids = tree.phones.ids
    for phone in phones:
        if phone.symbol not in ids:
            raise BadUtterance(f"the tree has no phone '{phone.symbol}'", where=name)
    for phone, (left, middle, right) in zip(phones, triphones(phones, tree)):
        if phone.start != len(senones) or phone.frames < 1:
            raise BadUtterance(f"its phone at frame {phone.start} does not follow the one before", where=name)
        senones += [
            tree.senone(left, middle, right, frame * tree.states // phone.frames)
            for frame in range(phone.frames)
        ]
    return Alignment(name, words, phones, np.array(senones, np.int32))


def triphones(phones: Sequence[Timed], tree: SenoneTree) -> list[tuple[int, int, int]]:
    """Each phone between its neighbours, as ids; silence stands before the first and behind the last."""
    ids = [tree.phones.ids[phone.symbol] for phone in phones]
    edge = tree.phones.ids[SILENCE]
    return list(zip([edge, *ids], ids, [*ids[1:], edge]))


def segments(
    alignment: Alignment, unit: Unit, *, silence: bool = True
) -> tuple[list[int] | list[str], NDArray[np.int32]]:
    """The sequence of units, and which of them each frame belongs to.

    A senone is a unit for as long as its state lasts: the same senone in two phones in a row is two units, as it
    is where senones come from text. Silences are no words.

    Args:
        silence: whether silences are units; without, and for words, their frames belong to none.

    Returns:
        symbols: senone ids, phones or words.
        index: `(T,)`, -1 for none.
    """
    index = np.full(len(alignment.senones), -1, np.int32)
    if unit == "word":
        for number, word in enumerate(alignment.words):
            index[word.start : word.start + word.frames] = number
        return [word.symbol for word in alignment.words], index
    symbols: list[int] | list[str]
    chosen = [phone for phone in alignment.phones if silence or phone.symbol != SILENCE]
    if unit == "phone":
        for number, phone in enumerate(chosen):
            index[phone.start : phone.start + phone.frames] = number
        return [phone.symbol for phone in chosen], index
    symbols = []
    for phone in chosen:
        own = alignment.senones[phone.start : phone.start + phone.frames]
        starts, frames = runs(own)
        index[phone.start : phone.start + phone.frames] = len(symbols) + np.repeat(
            np.arange(len(starts)), frames
        )
        symbols += own[starts].tolist()
    return symbols, index


def output_frames(frames: int, factor: int) -> NDArray[np.int64]:
    """Which of `frames` stand for the longer frames of an output: the middle one of every `factor`, or the last.

    There are ceil(frames / factor) of them, and one at least in any run of `factor` frames.
    """
    return np.minimum(np.arange(0, frames, factor) + factor // 2, frames - 1)


def subsample(alignment: Alignment, factor: int) -> Alignment:
    """The alignment at a lower rate, each longer frame labelled as its middle is.

    Phones and words of `factor` frames or more are still there; shorter ones may vanish.
    """
    chosen = output_frames(len(alignment.senones), factor)

    def moved(timed: Sequence[Timed]) -> list[Timed]:
        borders = [np.searchsorted(chosen, [each.start, each.start + each.frames]).tolist() for each in timed]
        return [
            Timed(each.symbol, start, end - start)
            for each, (start, end) in zip(timed, borders)
            if end > start
        ]

    return Alignment(alignment.id, moved(alignment.words), moved(alignment.phones), alignment.senones[chosen])
