"""Tiny lexicons, trees and language models, and the slow, obvious ways to decode with them."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retort.graph.fst import Fst

Words = tuple[str, ...]
Labels = tuple[int, ...]
Ngrams = dict[Words, tuple[float, float]]
LN10 = math.log(10)


class TinyPhones:
    def __init__(self, phones: Sequence[str]) -> None:
        self.symbols = ("SIL", *phones)
        self.ids = {symbol: number for number, symbol in enumerate(self.symbols)}


class TinyTree:
    """Every state of a phone has a few senones, by arbitrary classes of its neighbours; silence has one."""

    def __init__(self, phones: Sequence[str], states: int, seed: int = 0) -> None:
        self.phones = TinyPhones(phones)
        self.states = states
        rng = np.random.default_rng(seed)
        self._classes = rng.integers(0, 2, (2, len(phones) + 1)).tolist()
        self.count = 4 * (len(phones) + 1) * states

    def senone(self, left: int, phone: int, right: int, state: int) -> int:
        leaf = 2 * self._classes[0][left] + self._classes[1][right] if phone else 0
        return (phone * self.states + state) * 4 + leaf

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps([self.phones.symbols, self.states, self._classes]))


def write_ngrams(path: Path, ngrams: Ngrams) -> Path:
    """`ngrams`: words to log10 of probability and back-off."""
    order = max(map(len, ngrams))
    by_order = [[each for each in ngrams if len(each) == size] for size in range(1, order + 1)]
    lines = ["\\data\\", *(f"ngram {size}={len(each)}" for size, each in enumerate(by_order, 1))]
    for size, each in enumerate(by_order, 1):
        lines += ["", f"\\{size}-grams:"]
        for words in each:
            log_prob, backoff = ngrams[words]
            last = f"\t{backoff:.6f}" if size < order and words[-1] != "</s>" else ""
            lines.append(f"{log_prob:.6f}\t{' '.join(words)}{last}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path


def read_ngrams(path: Path) -> Ngrams:
    """What is in a packed ARPA file, read line by line."""
    found: Ngrams = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            found[tuple(fields[1].split(" "))] = (
                float(fields[0]),
                float(fields[2]) if len(fields) > 2 else 0.0,
            )
    return found


def random_ngrams(words: Sequence[str], rng: np.random.Generator) -> Ngrams:
    """A trigram with holes, whose every n-gram has its parts."""

    def number() -> float:
        return round(float(-rng.uniform(0.1, 1.5)), 6)

    ngrams: Ngrams = {("<s>",): (-99.0, number()), ("</s>",): (number(), 0.0)}
    ngrams |= {(word,): (number(), number()) for word in words}
    pairs = itertools.product(["<s>", *words], [*words, "</s>"])
    chosen = [pair for place, pair in enumerate(pairs) if not place or rng.random() < 0.5]
    ngrams |= {pair: (number(), number()) for pair in chosen}
    for first, second in itertools.product(chosen, chosen):
        if first[1] == second[0] and rng.random() < 0.5:
            ngrams[(*first, second[1])] = (number(), 0.0)
    return ngrams


def sentence_cost(ngrams: Ngrams, words: Sequence[str]) -> float:
    """The cheapest way through back-offs: a transducer takes one also where it need not."""
    order = max(map(len, ngrams))
    states: dict[Words, float] = {("<s>",): 0.0}
    for word in [*words, "</s>"]:
        following: dict[Words, float] = {}
        for history, cost in states.items():
            while True:
                if (*history, word) in ngrams:
                    total = cost - LN10 * ngrams[(*history, word)][0]
                    after = (*history, word)[-(order - 1) :]
                    while word != "</s>" and after not in ngrams:
                        after = after[1:]
                    following[after] = min(total, following.get(after, math.inf))
                if not history:
                    break
                cost -= LN10 * ngrams[history][1]
                history = history[1:]
        states = following
    return min(states.values())


def path_cost(columns: Sequence[int], scores: NDArray[np.floating], loops: Sequence[float] | None) -> float:
    """Of the best way to go through `columns` in order, each for a frame or more; with `loops` as an HMM does."""
    frames = len(scores)
    if not columns or len(columns) > frames:
        return math.inf
    costs = [math.inf] * len(columns)
    for frame in range(frames):
        before = [math.inf if frame else 0.0, *costs[:-1]]
        for place, column in enumerate(columns):
            stay = costs[place] + (-math.log(loops[column]) if loops else 0.0)
            enter = before[place] + (-math.log1p(-loops[column]) if loops else 0.0)
            costs[place] = min(stay, enter) - float(scores[frame, column])
        if frame == 0:
            costs[1:] = [math.inf] * (len(columns) - 1)
    return costs[-1]


def hmm_cost(
    words: Sequence[str],
    lexicon: Mapping[str, Sequence[Sequence[str]]],
    tree: TinyTree,
    loops: Sequence[float],
    silence: float,
    scores: NDArray[np.floating],
) -> float:
    """Of the best pronunciations and silences of `words`, without the language model."""
    best = math.inf
    for spelled in itertools.product(*(lexicon[word] for word in words)):
        for pauses in itertools.product((False, True), repeat=len(words) + 1):
            phones = [0] * pauses[0]
            for phones_of_word, pause in zip(spelled, pauses[1:]):
                phones += [tree.phones.ids[phone] for phone in phones_of_word] + [0] * pause
            around = [0, *phones, 0]
            columns = [
                tree.senone(around[place], phone, around[place + 2], state)
                for place, phone in enumerate(phones)
                for state in range(tree.states)
            ]
            cost = -sum(math.log(silence if pause else 1 - silence) for pause in pauses)
            best = min(best, cost + path_cost(columns, scores, loops))
    return best


def ctc_cost(
    words: Sequence[str],
    lexicon: Mapping[str, Sequence[Sequence[str]]],
    symbols: Sequence[str],
    scores: NDArray[np.floating],
) -> float:
    """Of the best spelling and path of CTC: with a blank or without at every place, but between equal tokens."""
    best = math.inf
    for spelled in itertools.product(*(lexicon[word] for word in words)):
        tokens = [symbols.index(each) for one in spelled for each in one]
        for blanks in itertools.product((False, True), repeat=len(tokens) + 1):
            columns = [0] * blanks[0]
            for token, blank in zip(tokens, blanks[1:]):
                columns += [token] + [0] * blank
            if all(first != second for first, second in itertools.pairwise(columns)):
                best = min(best, path_cost(columns, scores, None))
    return best


def sentences(words: Sequence[str], longest: int) -> Iterator[Words]:
    for length in range(longest + 1):
        yield from itertools.product(words, repeat=length)


def pass_tokens(fst: Fst, scores: NDArray[np.floating], scale: float = 1.0) -> dict[Labels, float]:
    """The cost of the best path of every sequence of output labels: token passing without a beam."""
    leaving: list[list[tuple[int, int, float, int]]] = [[] for _ in range(fst.states)]
    columns = (fst.sources, fst.inputs, fst.outputs, fst.weights, fst.targets)
    for source, *arc in zip(*(column.tolist() for column in columns)):
        leaving[source].append(tuple(arc))
    tokens = _without_frames(leaving, {(fst.start, ()): 0.0})
    for frame in scores:
        moved: dict[tuple[int, Labels], float] = {}
        for (state, emitted), cost in tokens.items():
            for label, output, weight, target in leaving[state]:
                if label:
                    total = cost + weight - scale * float(frame[label - 1])
                    _keep(moved, (target, (*emitted, output) if output else emitted), total)
        tokens = _without_frames(leaving, moved)
    ended: dict[Labels, float] = {}
    for (state, emitted), cost in tokens.items():
        if np.isfinite(fst.finals[state]):
            ended[emitted] = min(ended.get(emitted, math.inf), cost + float(fst.finals[state]))
    return ended


def _without_frames(
    leaving: list[list[tuple[int, int, float, int]]], tokens: dict[tuple[int, Labels], float]
) -> dict[tuple[int, Labels], float]:
    waiting = list(tokens)
    while waiting:
        state, emitted = waiting.pop()
        cost = tokens[state, emitted]
        for label, output, weight, target in leaving[state]:
            key = (target, (*emitted, output) if output else emitted)
            if not label and _keep(tokens, key, cost + weight):
                waiting.append(key)
    return tokens


def _keep(tokens: dict[tuple[int, Labels], float], key: tuple[int, Labels], cost: float) -> bool:
    better = cost < tokens.get(key, math.inf)
    if better:
        tokens[key] = cost
    return better
