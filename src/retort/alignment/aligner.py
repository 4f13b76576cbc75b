"""Alignment of transcripts with given frame scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retort.alignment.alignment import Alignment, from_path
from retort.alignment.store import AlignmentStore, save_alignments
from retort.alignment.tree import SenoneTree
from retort.alignment.utterance import UtteranceHmm, utterance_hmm
from retort.alignment.viterbi import Task, best_paths
from retort.common.errors import UserError
from retort.text.lexicon import Lexicon

_TOGETHER = 64
"""Utterances whose scores are in memory at once."""


class Transcriber:
    """Converts transcripts to HMMs.

    Args:
        loops: `(S,)`, self-loop probability of each senone.
    """

    def __init__(
        self, lexicon: Lexicon, tree: SenoneTree, loops: NDArray[np.float64], silence_probability: float
    ) -> None:
        self.lexicon = lexicon
        self.tree = tree
        self.loops = loops
        self.silence_probability = silence_probability

    def hmm(self, words: Sequence[str]) -> UtteranceHmm:
        """The HMM of at least one word, all in the lexicon."""
        ids = self.tree.phones.ids
        pronunciations = [[tuple(ids[phone] for phone in phones) for phones in self.lexicon[word]] for word in words]
        return utterance_hmm(pronunciations, self.tree, self.loops, self.silence_probability)


def obstacle(words: Sequence[str], frames: int, lexicon: Lexicon, states: int) -> str:
    """The reason why a transcript cannot be aligned with this number of frames; empty if it can."""
    if not words:
        return "its transcript is empty"
    if missing := lexicon.missing(words):
        return f"no pronunciation of {', '.join(missing)}"
    least = states * sum(min(map(len, lexicon[word])) for word in words)
    return f"too short: {frames} frames, but its phones need {least}" if frames < least else ""


def realign(
    store: AlignmentStore,
    log_likelihoods: Iterable[tuple[str, NDArray[np.floating]]],
    folder: str | Path,
    *,
    silence_probability: float = 0.5,
) -> AlignmentStore:
    """Align the same words with other scores, such as those of a network that was trained on the old alignment.

    Pronunciations and silences are chosen again. What cannot be aligned is skipped, with the reason.

    Args:
        store: source of words, lexicon, tree, self-loops and frame shift.
        log_likelihoods: utterance ids with `(T, S)`: log p(frame | senone) up to a constant per frame, such
            as log posterior minus log prior. They are consumed one by one.
        folder: folder of the new store, different from that of `store`.

    Raises:
        UserError: the number of senones differs, or no utterance could be aligned.
    """
    if Path(folder).resolve() == store.folder.resolve():
        raise UserError("the new alignments would replace their source", where=folder)
    skipped = dict(store.skipped)
    aligned = _realigned(store, iter(log_likelihoods), skipped, silence_probability)
    return save_alignments(
        folder, aligned, store.tree, store.lexicon, skipped=skipped, frame_shift=store.frame_shift
    )


def _realigned(
    store: AlignmentStore,
    coming: Iterator[tuple[str, NDArray[np.floating]]],
    skipped: dict[str, str],
    silence_probability: float,
) -> Iterator[Alignment]:
    tree = store.tree
    transcriber = Transcriber(store.lexicon, tree, store.self_loops, silence_probability)
    while held := list(islice(coming, _TOGETHER)):
        chosen = []
        for name, scores in held:
            if scores.ndim != 2 or scores.shape[1] != tree.count:
                raise UserError(
                    f"scores of shape {scores.shape}, but the tree has {tree.count} senones", where=name
                )
            words = [word.symbol for word in store[name].words] if name in store else []
            reason = obstacle(words, len(scores), store.lexicon, tree.states)
            if not reason and not np.isfinite(scores).all():
                reason = "its scores are not finite"
            if reason:
                skipped[name] = reason if name in store else "it was not aligned before"
            else:
                chosen.append((name, words, scores, transcriber.hmm(words)))
        tasks = [Task(hmm.arcs, scores, hmm.senones) for _, _, scores, hmm in chosen]
        for (name, words, _, hmm), path in zip(chosen, best_paths(tasks)):
            if path is not None:
                yield from_path(name, words, hmm, path.states, tree.phones.symbols)
