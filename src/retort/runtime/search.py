"""Greedy and beam search over the fires of an exported CIF model, in NumPy.

They give the results of :func:`retort.decoding.greedy.greedy_fired` and :func:`retort.decoding.cif.beam_fired`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retort.decoding.hypothesis import NEVER_EMITTED, Hypothesis, until_eos
from retort.runtime.session import Arrays, Session
from retort.text.tokenizers import EOS

_OF_FRAMES = ("frames", "keys", "values")


class Decoder:
    """The decoder of one batch of N utterances.

    Args:
        step: graph of one step, or None for a parallel decoder, whose log-probabilities are outputs of the encoder.
        fired: outputs of the encoder.
    """

    def __init__(self, step: Session | None, fired: Arrays) -> None:
        self._step, self._fired = step, fired
        self._memory: Arrays = {name: fired[name] for name in _OF_FRAMES if name in fired}
        self._past: Arrays = {name: fired[name] for name in ("past_keys", "past_values") if name in fired}

    def __call__(self, number: int, previous: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities `(N, K, V)` of token `number`, after the tokens `previous (N, K)` of K hypotheses."""
        if self._step is None:
            row = self._fired["log_probs"][:, number, None]
            result = np.repeat(row, previous.shape[1], axis=1)
        else:
            embeddings = self._fired["embeddings"]
            zero = np.zeros_like(embeddings[:, 0])
            inputs: Arrays = {
                "previous": previous,
                "position": np.array(number, np.int64),
                "embedding": embeddings[:, number],
                "before": embeddings[:, number - 1] if number else zero,
            }
            if "places" in self._fired:
                inputs["place"] = self._fired["places"][:, number]
            after = self._step({**inputs, **self._memory, **self._past})
            result = after["log_probs"]
            self._past = {name: after[name.replace("past", "next")] for name in ("past_keys", "past_values")}
        result[..., NEVER_EMITTED] = -np.inf
        return result

    def select(self, parents: NDArray[np.int64]) -> None:
        """Continue with the hypotheses `parents (N, K)`; they may repeat."""
        rows = np.arange(len(parents))[:, None]
        self._past = {name: each[:, rows, parents] for name, each in self._past.items()}


def greedy(decoder: Decoder, fired: Arrays) -> list[list[Hypothesis]]:
    """The most probable token at every fire; lists of one hypothesis, cut at its first EOS."""
    counts = fired["counts"]
    previous = np.full((len(counts), 1), EOS, np.int64)
    running = counts > 0
    tokens: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    number = 0
    while running.any():
        log_probs = decoder(number, previous)
        previous = log_probs.argmax(-1)
        tokens.append(previous[:, 0])
        scores.append(np.take_along_axis(log_probs, previous[..., None], -1)[:, 0, 0])
        number += 1
        running &= (previous[:, 0] != EOS) & (counts > number)
    ids = np.stack(tokens, 1) if tokens else np.zeros((len(counts), 0), np.int64)
    own = np.stack(scores, 1) if scores else np.zeros((len(counts), 0), np.float32)
    found = []
    for row, each, ends, count in zip(ids.tolist(), own.tolist(), fired["times"].tolist(), counts.tolist()):
        found.append([until_eos(row[:count], each, ends)])
    return found


@dataclass(frozen=True)
class _Beams:
    """K hypotheses of each of N utterances, best first: tokens and log-probabilities `(N, K, P)`, scores and whether
    they contain EOS `(N, K)`."""

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    scores: NDArray[np.float64]
    ended: NDArray[np.bool_]


def beam_search(decoder: Decoder, fired: Arrays, beam: int, spare: bool) -> list[list[Hypothesis]]:
    """The n-best list of each utterance: up to `beam` different hypotheses, at least one.

    Args:
        beam: number of hypotheses after every fire.
        spare: a hypothesis costs nothing after its EOS.
    """
    counts = fired["counts"]
    size = len(counts)
    beams = _Beams(
        np.zeros((size, 1, 0), np.int64),
        np.zeros((size, 1, 0), np.float32),
        np.zeros((size, 1)),
        np.zeros((size, 1), np.bool_),
    )
    for number in range(int(counts.max(initial=0))):
        width = beams.tokens.shape[1]
        previous = beams.tokens[..., -1] if number else np.full((size, width), EOS, np.int64)
        log_probs = decoder(number, previous)
        running = (counts > number)[:, None] & (~beams.ended if spare else True)
        beams, parents = _advance(beams, log_probs, np.broadcast_to(running, beams.ended.shape), beam)
        decoder.select(parents)
    return _candidates(beams, fired)


def _advance(
    beams: _Beams, log_probs: NDArray[np.float32], running: NDArray[np.bool_], beam: int
) -> tuple[_Beams, NDArray[np.int64]]:
    """Extend the hypotheses by one fire; `running (N, K)` are those that are extended.

    Returns the new hypotheses, and the hypotheses `(N, K')` that they extend.
    """
    branches = min(beam, log_probs.shape[-1])
    if branches == 1:
        tokens = log_probs.argmax(-1)[..., None]
    else:
        tokens = np.argpartition(-log_probs, branches - 1, -1)[..., :branches]
        order = np.argsort(-np.take_along_axis(log_probs, tokens, -1), -1, kind="stable")
        tokens = np.take_along_axis(tokens, order, -1)
    own = np.take_along_axis(log_probs, tokens, -1)
    gain = np.where(running[..., None], own.astype(np.float64), 0.0)
    single = (beams.ended | ~running)[..., None] & (np.arange(branches) > 0)
    gain[single] = -np.inf
    size = len(gain)
    scores = (beams.scores[..., None] + gain).reshape(size, -1)
    order = np.argsort(-scores, 1, kind="stable")[:, :beam]
    parents, utterance = order // branches, np.arange(size)[:, None]
    chosen = tokens.reshape(size, -1)[utterance, order]
    added = own.reshape(size, -1)[utterance, order]
    after = _Beams(
        np.concatenate((beams.tokens[utterance, parents], chosen[..., None]), -1),
        np.concatenate((beams.log_probs[utterance, parents], added[..., None]), -1),
        scores[utterance, order],
        beams.ended[utterance, parents] | (chosen == EOS),
    )
    return after, parents


def _candidates(beams: _Beams, fired: Arrays) -> list[list[Hypothesis]]:
    """The hypotheses, cut at the last fire of their utterance and at their first EOS."""
    found = []
    of_beams = (beams.tokens.tolist(), beams.log_probs.tolist(), beams.scores.tolist())
    for ids, own, scores, ends, count in zip(*of_beams, fired["times"].tolist(), fired["counts"].tolist()):
        found.append(
            [
                until_eos(row[:count], log_probs, ends, score)
                for row, log_probs, score in zip(ids, own, scores)
                if score != -np.inf
            ]
        )
    return found
