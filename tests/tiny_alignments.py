"""Alignments that nobody made: every letter is a phone, every phone lasts so many frames."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retort.alignment.alignment import Alignment, Timed, triphones
from retort.alignment.phones import SILENCE, Phones
from retort.alignment.store import SHARD_SUFFIX, AlignmentStore, finish_store, write_shard
from retort.alignment.tree import SenoneTree
from retort.text.lexicon import Lexicon

PHONES = Phones("abcdefgh")
SHARD = 2048
"""Utterances per shard of a store."""


def from_phones(name: str, words: list[Timed], phones: list[Timed], tree: SenoneTree) -> Alignment:
    """Each phone is divided evenly among its states; the context outside the utterance is silence."""
    senones = [
        tree.senone(left, middle, right, frame * tree.states // phone.frames)
        for phone, (left, middle, right) in zip(phones, triphones(phones, tree))
        for frame in range(phone.frames)
    ]
    return Alignment(name, words, phones, np.array(senones, np.int32))


def align_evenly(name: str, text: str, frames: int, tree: SenoneTree, *, silence: int = 6) -> Alignment:
    """Silences of `silence` frames at both ends and between words, what remains shared evenly by the letters."""
    spoken = text.lower().split()
    letters = [*"".join(spoken)]
    room = frames - silence * (len(spoken) + 1)
    borders = np.linspace(0, room, len(letters) + 1).round().astype(int)
    lengths = iter(np.diff(borders).tolist())
    phones = [Timed(SILENCE, 0, silence)]
    output = []
    for word in spoken:
        start = phones[-1].start + phones[-1].frames
        for letter in word:
            phones.append(Timed(letter, phones[-1].start + phones[-1].frames, next(lengths)))
        end = phones[-1].start + phones[-1].frames
        output.append(Timed(word.upper(), start, end - start))
        phones.append(Timed(SILENCE, end, silence))
    return from_phones(name, output, phones, tree)


def align_characters(name: str, text: str, frames: int, tree: SenoneTree) -> Alignment:
    """As the language of tones is spoken: characters last equally long, spaces among them, which are silences."""
    borders = np.linspace(0, frames, len(text) + 1).round().astype(int).tolist()
    places = list(zip(text.lower(), borders, np.diff(borders).tolist()))
    phones = [Timed(letter if letter != " " else SILENCE, start, count) for letter, start, count in places]
    output: list[Timed] = []
    for (letter, start, count), before in zip(places, f" {text}"):
        if letter != " " and before != " ":
            output[-1] = Timed(output[-1].symbol + letter, output[-1].start, output[-1].frames + count)
        elif letter != " ":
            output.append(Timed(letter, start, count))
    return from_phones(name, output, phones, tree)


def save_alignments(
    folder: Path,
    alignments: Sequence[Alignment],
    tree: SenoneTree,
    lexicon: Lexicon,
    *,
    skipped: Mapping[str, str] | None = None,
    frame_shift: float = 0.01,
) -> AlignmentStore:
    """A store of these alignments, with the words that occur in them; an earlier one is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for start in range(0, len(alignments), SHARD):
        part = alignments[start : start + SHARD]
        write_shard(folder / f"{start:05d}{SHARD_SUFFIX}", part, tree)
    words = {word.symbol for each in alignments for word in each.words}
    return finish_store(folder, tree, lexicon.only(sorted(words)), skipped or {}, frame_shift)


def store_alignments(
    folder: Path,
    texts: Mapping[str, tuple[str, int]],
    *,
    states: int = 3,
    frame_shift: float = 0.01,
    silence: int = 6,
    skipped: Mapping[str, str] | None = None,
) -> AlignmentStore:
    """Of utterances, each with its text and its frames."""
    tree = SenoneTree.monophone(PHONES, states)
    made = [align_evenly(name, text, frames, tree, silence=silence) for name, (text, frames) in texts.items()]
    lexicon = Lexicon(
        {word.upper(): [[*word]] for text, _ in texts.values() for word in text.lower().split()}
    )
    return save_alignments(folder, made, tree, lexicon, skipped=skipped, frame_shift=frame_shift)


def senone_symbols(states: int = 3) -> Sequence[str]:
    """Those of the spoken phones."""
    return [f"S{number}" for number in range(states, len(PHONES) * states)]
