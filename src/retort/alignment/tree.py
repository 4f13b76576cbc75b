"""Senones: tied triphone states, by a decision tree for each state of each phone."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.gmm import VARIANCE_FLOOR
from retort.alignment.phones import SILENCE, Phones
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json


@dataclass(frozen=True)
class Question:
    """A question whether a neighbour is in a class of phones."""

    right: bool
    """The right neighbour if true, otherwise the left one."""
    phones: frozenset[int]


@dataclass(frozen=True)
class Split:
    question: Question
    yes: Node
    no: Node


Node = int | Split
"""A leaf is a senone."""


class SenoneTree:
    """A decision tree from triphone states to senones 0 to count - 1, including unseen triphones.

    Args:
        phones: the phone inventory.
        states: number of emitting states of a phone.
        roots: `roots[phone][state]`; those of silence are leaves.

    Raises:
        UserError: the roots do not fit, or the leaves are not 0 to count - 1.
    """

    def __init__(self, phones: Phones, states: int, roots: list[list[Node]]) -> None:
        self.phones = phones
        self.states = states
        self.roots = roots
        leaves = [leaf for row in roots for root in row for leaf in _leaves(root)]
        self.count: int = len(set(leaves))
        whole = len(roots) == len(phones) and all(len(row) == states for row in roots)
        if (
            not whole
            or set(leaves) != set(range(self.count))
            or any(isinstance(root, Split) for root in roots[0])
        ):
            raise UserError(
                "the tree does not fit its phones", remedy="Align again with retort train"
            )
        self._known: dict[tuple[int, int, int, int], int] = {}

    @classmethod
    def monophone(cls, phones: Phones, states: int) -> SenoneTree:
        """A tree with one senone for each state of each phone, independent of context."""
        return cls(
            phones,
            states,
            [[phone * states + state for state in range(states)] for phone in range(len(phones))],
        )

    def senone(self, left: int, phone: int, right: int, state: int) -> int:
        """The senone of a state of a phone between two others (ids); silence (0) is a context, but has none."""
        key = (left, phone, right, state)
        if key not in self._known:
            node = self.roots[phone][state]
            while isinstance(node, Split):
                neighbour = right if node.question.right else left
                node = node.yes if neighbour in node.question.phones else node.no
            self._known[key] = node
        return self._known[key]

    def phones_of_senones(self) -> list[str]:
        """Phone of each senone; the first one if several share it."""
        found = dict.fromkeys(range(self.count), "")
        for symbol, row in zip(self.phones.symbols, self.roots):
            for leaf in (leaf for root in row for leaf in _leaves(root)):
                found[leaf] = found[leaf] or symbol
        return list(found.values())

    def __str__(self) -> str:
        """JSON in the format of :meth:`load`, with phones by name."""
        roots = {
            symbol: [_written(node, self.phones.symbols) for node in row]
            for symbol, row in zip(self.phones.symbols, self.roots)
        }
        return json.dumps({"states": self.states, "roots": roots}, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the tree as JSON."""
        write_whole(Path(path), str(self))

    @classmethod
    def load(cls, path: str | Path) -> SenoneTree:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            content = read_json(path, deepest=900)  # nesting is the depth of the tree
            phones = Phones(symbol for symbol in content["roots"] if symbol != SILENCE)
            roots = [
                [_read(node, phones.ids) for node in content["roots"][symbol]] for symbol in phones.symbols
            ]
            return cls(phones, content["states"], roots)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"the tree cannot be read ({type(error).__name__}: {error})", where=path, remedy="Align again"
            ) from None


def _leaves(node: Node) -> list[int]:
    return [*_leaves(node.yes), *_leaves(node.no)] if isinstance(node, Split) else [node]


def _written(node: Node, symbols: tuple[str, ...]) -> Any:
    if not isinstance(node, Split):
        return node
    return {
        "side": "right" if node.question.right else "left",
        "phones": [symbols[phone] for phone in sorted(node.question.phones)],
        "yes": _written(node.yes, symbols),
        "no": _written(node.no, symbols),
    }


def _read(node: Any, ids: dict[str, int]) -> Node:
    if isinstance(node, int):
        return node
    question = Question(node["side"] == "right", frozenset(ids[symbol] for symbol in node["phones"]))
    return Split(question, _read(node["yes"], ids), _read(node["no"], ids))


_SILENCE = 0


@dataclass
class TriphoneStatistics:
    """Statistics of each state of each triphone, from which the tree is built."""

    keys: NDArray[np.int64]
    """(K, 4): left phone, phone, right phone, state; sorted and distinct."""
    sums: NDArray[np.float64]
    """(K, 2 D + 1): sums of the features, sums of their squares, number of frames."""

    @classmethod
    def of(cls, keys: NDArray[np.integer], squared: NDArray[np.floating]) -> TriphoneStatistics:
        """Statistics of frames, or sums of statistics: `(T, 4)` and `(T, 2 D + 1)`."""
        distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(inverse.reshape(-1), kind="stable")
        firsts = np.searchsorted(inverse.reshape(-1)[order], np.arange(len(distinct)))
        held = squared[order].astype(np.float64)
        sums = np.add.reduceat(held, firsts) if len(distinct) else held
        return cls(distinct.astype(np.int64), sums)

    @classmethod
    def together(cls, parts: Sequence[TriphoneStatistics]) -> TriphoneStatistics:
        return cls.of(
            np.concatenate([part.keys for part in parts]), np.concatenate([part.sums for part in parts])
        )


def log_likelihood(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-likelihood of frames under their maximum likelihood diagonal Gaussian: `(..., 2 D + 1)` to `(...)`."""
    dim = (sums.shape[-1] - 1) // 2
    frames = sums[..., -1]
    divisor = np.maximum(frames, 1e-10)[..., None]
    mean = sums[..., :dim] / divisor
    variance = np.maximum(sums[..., dim:-1] / divisor - np.square(mean), VARIANCE_FLOOR)
    return -0.5 * frames * (dim * (math.log(2 * math.pi) + 1) + np.log(variance).sum(-1))


def phone_classes(statistics: TriphoneStatistics, phones: int, state: int) -> list[frozenset[int]]:
    """Classes of acoustically similar phones by agglomerative clustering: all intermediate clusters.

    The two clusters whose merge into one Gaussian loses the least likelihood are merged next. Phones without
    data are in no class. Silence is treated like any other phone.

    Args:
        state: state that represents a phone.
    """
    clusters: dict[frozenset[int], NDArray[np.float64]] = {}
    for phone in range(phones):
        own = statistics.sums[(statistics.keys[:, 1] == phone) & (statistics.keys[:, 3] == state)]
        if len(own):
            clusters[frozenset([phone])] = own.sum(0)
    classes = list(clusters)
    while len(clusters) > 2:  # one cluster of all would be no question
        names, sums = list(clusters), np.stack(list(clusters.values()))
        alone = log_likelihood(sums)
        first, second = np.triu_indices(len(names), 1)
        loss = alone[first] + alone[second] - log_likelihood(sums[first] + sums[second])
        least = int(loss.argmin())
        one, other = names[first[least]], names[second[least]]
        clusters[one | other] = clusters.pop(one) + clusters.pop(other)
        classes.append(one | other)
    return classes


class _Best(NamedTuple):
    gain: float
    question: Question
    yes: NDArray[np.bool_]


class _Leaf:
    """A set of triphones of one state of one phone, with its position in the tree."""

    def __init__(self, keys: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        self.keys, self.sums = keys, sums
        self.split: tuple[Question, _Leaf, _Leaf] | None = None
        self.senone = -1

    def parted(self, best: _Best) -> tuple[_Leaf, _Leaf]:
        yes = _Leaf(self.keys[best.yes], self.sums[best.yes])
        no = _Leaf(self.keys[~best.yes], self.sums[~best.yes])
        self.split = (best.question, yes, no)
        return yes, no

    def node(self) -> Node:
        return Split(self.split[0], self.split[1].node(), self.split[2].node()) if self.split else self.senone


def grow_tree(
    statistics: TriphoneStatistics, phones: Phones, states: int, *, senones: int, minimum_frames: float
) -> SenoneTree:
    """Split the states of phones by context until there are `senones` of them.

    The split with the greatest gain in likelihood is next, if both parts keep `minimum_frames`. Silence is
    not split. There is at least one senone for each state of each phone.
    """
    classes = phone_classes(statistics, len(phones), states // 2)
    roots = []
    for phone in range(len(phones)):
        of_phone = statistics.keys[:, 1] == phone
        row = [of_phone & (statistics.keys[:, 3] == state) for state in range(states)]
        roots.append([_Leaf(statistics.keys[chosen], statistics.sums[chosen]) for chosen in row])
    queue: list[tuple[float, int, _Leaf, _Best]] = []
    count = len(phones) * states
    ticket = 0

    def offer(leaf: _Leaf) -> None:
        nonlocal ticket
        if best := _best_split(leaf, classes, minimum_frames):
            heapq.heappush(queue, (-best.gain, ticket, leaf, best))
            ticket += 1

    for row in roots[_SILENCE + 1 :]:
        for leaf in row:
            offer(leaf)
    while queue and count < senones:
        _, _, leaf, best = heapq.heappop(queue)
        for part in leaf.parted(best):
            offer(part)
        count += 1
    number = 0
    for row in roots:
        for root in row:
            number = _numbered(root, number)
    return SenoneTree(phones, states, [[leaf.node() for leaf in row] for row in roots])


def _numbered(leaf: _Leaf, number: int) -> int:
    if leaf.split is None:
        leaf.senone = number
        return number + 1
    return _numbered(leaf.split[2], _numbered(leaf.split[1], number))


def _best_split(leaf: _Leaf, classes: Sequence[frozenset[int]], minimum_frames: float) -> _Best | None:
    if not len(leaf.keys) or leaf.sums[:, -1].sum() < 2 * minimum_frames:
        return None
    total = leaf.sums.sum(0)
    whole = float(log_likelihood(total))
    best = None
    for right, column in ((False, 0), (True, 2)):
        answers = np.array([np.isin(leaf.keys[:, column], list(members)) for members in classes])
        yes = answers.astype(np.float64) @ leaf.sums
        no = total - yes
        gains = log_likelihood(yes) + log_likelihood(no) - whole
        gains[(yes[:, -1] < minimum_frames) | (no[:, -1] < minimum_frames)] = -np.inf
        top = int(gains.argmax())
        if gains[top] > (best.gain if best else 0.0):
            best = _Best(float(gains[top]), Question(right, classes[top]), answers[top])
    return best
