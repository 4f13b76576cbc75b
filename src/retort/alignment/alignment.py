"""The alignment of an utterance: its words, phones and senones by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.phones import SILENCE
from retort.alignment.tree import SenoneTree
from retort.alignment.utterance import UtteranceHmm

Unit = Literal["senone", "phone", "word"]


class Timed(NamedTuple):
    symbol: str
    start: int
    """Frame."""
    frames: int


@dataclass
class Alignment:
    """Alignment of an utterance of T frames."""

    id: str
    words: list[Timed]
    """Words in order, without silences."""
    phones: list[Timed]
    """Contiguous phones from frame 0 to T; silences are `SIL`."""
    senones: NDArray[np.int32]
    """(T,)"""


def from_path(
    name: str, words: Sequence[str], hmm: UtteranceHmm, states: NDArray[np.integer], symbols: Sequence[str]
) -> Alignment:
    """Convert a path through the HMM of a transcript to an alignment.

    Args:
        words: the transcript.
        states: `(T,)`, the path.
        symbols: symbols of the phone ids.
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
    """Starts and lengths of runs of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return starts.tolist(), np.diff(starts, append=len(values)).tolist()


def triphones(phones: Sequence[Timed], tree: SenoneTree) -> list[tuple[int, int, int]]:
    """Triphones as ids; the context outside the utterance is silence."""
    ids = [tree.phones.ids[phone.symbol] for phone in phones]
    edge = tree.phones.ids[SILENCE]
    return list(zip([edge, *ids], ids, [*ids[1:], edge]))


def segments(
    alignment: Alignment, unit: Unit, *, silence: bool = True
) -> tuple[list[int] | list[str], NDArray[np.int32]]:
    """The sequence of units, and the unit of each frame.

    A senone is one unit per visit of its state: the same senone in two consecutive phones is two units, as in
    senones generated from text. Silences are not words.

    Args:
        silence: whether silences are units; otherwise, and for words, their frames belong to no unit.

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
    """Indices of the frames that represent the longer frames of an output: the middle one of every `factor`,
    or the last.

    There are ceil(frames / factor) of them, at least one in any run of `factor` frames.
    """
    return np.minimum(np.arange(0, frames, factor) + factor // 2, frames - 1)


def subsample(alignment: Alignment, factor: int) -> Alignment:
    """Subsample the alignment; each longer frame has the label of its middle.

    Phones and words of at least `factor` frames remain; shorter ones may disappear.
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
