"""The senones of a system: which triphone states are one, by a decision tree for each state of each phone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import UserError
from retort.files import write_whole
from retort.hybrid.phones import SILENCE, Phones
from retort.json_reader import read_json


@dataclass(frozen=True)
class Question:
    """Whether a neighbour is one of a class of phones."""

    right: bool
    """The neighbour to the right, else to the left."""
    phones: frozenset[int]


@dataclass(frozen=True)
class Split:
    question: Question
    yes: Node
    no: Node


Node = int | Split
"""A leaf is its senone."""


class SenoneTree:
    """Senones 0 to count - 1 of triphone states, those never seen included.

    Args:
        phones: ids of phones are theirs.
        states: emitting states of a phone.
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
                "the tree does not fit its phones", remedy="Make it again: retort train aligns anew"
            )
        self._known: dict[tuple[int, int, int, int], int] = {}

    @classmethod
    def monophone(cls, phones: Phones, states: int) -> SenoneTree:
        """One senone for each state of each phone, whatever its neighbours."""
        return cls(
            phones,
            states,
            [[phone * states + state for state in range(states)] for phone in range(len(phones))],
        )

    def senone(self, left: int, phone: int, right: int, state: int) -> int:
        """Of a state of a phone (ids) between two others; silence (0) has no contexts, but is one."""
        key = (left, phone, right, state)
        if key not in self._known:
            node = self.roots[phone][state]
            while isinstance(node, Split):
                neighbour = right if node.question.right else left
                node = node.yes if neighbour in node.question.phones else node.no
            self._known[key] = node
        return self._known[key]

    def states_of_senones(self) -> list[int]:
        """Of each senone which HMM state (from 0) it is; -1 of one that several share."""
        found: dict[int, set[int]] = {senone: set() for senone in range(self.count)}
        for row in self.roots:
            for state, root in enumerate(row):
                for leaf in _leaves(root):
                    found[leaf].add(state)
        return [states.pop() if len(states) == 1 else -1 for states in found.values()]

    def phones_of_senones(self) -> list[str]:
        """Of each senone the phone that it is of; of one that several share, the first of them."""
        found = dict.fromkeys(range(self.count), "")
        for symbol, row in zip(self.phones.symbols, self.roots):
            for leaf in (leaf for root in row for leaf in _leaves(root)):
                found[leaf] = found[leaf] or symbol
        return list(found.values())

    def __str__(self) -> str:
        """As :meth:`load` reads it: JSON, phones by name."""
        roots = {
            symbol: [_written(node, self.phones.symbols) for node in row]
            for symbol, row in zip(self.phones.symbols, self.roots)
        }
        return json.dumps({"states": self.states, "roots": roots}, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write it as JSON; phones by name."""
        write_whole(Path(path), str(self))

    @classmethod
    def load(cls, path: str | Path) -> SenoneTree:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: there is none, or it is broken.
        """
        try:
            content = read_json(path, deepest=900)  # an object for each question on the way to a leaf
            phones = Phones(symbol for symbol in content["roots"] if symbol != SILENCE)
            roots = [
                [_read(node, phones.ids) for node in content["roots"][symbol]] for symbol in phones.symbols
            ]
            return cls(phones, content["states"], roots)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"the tree cannot be read ({type(error).__name__}: {error})", where=path, remedy="Align anew"
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
