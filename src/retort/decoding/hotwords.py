"""Hotwords: phrases that the search prefers, as a scorer over the student's tokens.

A trie of the phrases with failure links (Aho and Corasick 1975), as the context graphs of icefall and sherpa-onnx: each
token of a phrase adds to the score, and what was added is taken back when the match fails. Other than there,
a phrase matches whole words only, a phrase may have several tokenisations with the same sum, and of phrases that start at
the same token only the best counts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.decoding.options import DecodingOptions
from retort.text.normalise import Normaliser, is_cjk
from retort.text.tokenizers import EOS, SPECIAL, UNKNOWN, Tokenizer

MOST_PHRASES, LONGEST_PHRASE, LARGEST_FILE = 10_000, 200, 4_000_000
"""Limits of a list of hotwords: phrases, characters of a phrase, bytes of a file."""
LARGEST_WEIGHT = 100.0
FURTHER_PIECES = 2
"""Tokenisations of a phrase have up to this many pieces more than the shortest one."""
CACHED_BYTES = 1 << 26
"""Memory for the scores of trie nodes."""


@dataclass(frozen=True)
class Hotword:
    """A phrase with the score that each token of its shortest tokenisation adds; None for the weight of the options."""

    text: str
    weight: float | None = None


def parse_hotwords(lines: Iterable[str], where: str = "hotwords") -> list[Hotword]:
    """Phrases, one per line, with an optional weight after a tab; empty lines are skipped.

    Raises:
        UserError: a weight is not a number from 0 to 100, a phrase is too long, or there is none or too many of them.
    """
    found = []
    for number, line in enumerate(lines, 1):
        text, tab, written = line.strip("\r\n ").partition("\t")
        text, place = " ".join(text.split()), f"{where}, line {number}"
        if not text and not tab:
            continue
        weight = None
        if tab:
            try:
                weight = float(written)
            except ValueError:
                weight = math.nan
            if not 0.0 <= weight <= LARGEST_WEIGHT:
                raise UserError(
                    f"the weight is '{written[:40]}'", where=place, remedy=f"Give a number from 0 to {LARGEST_WEIGHT:g}"
                )
        if not 0 < len(text) <= LONGEST_PHRASE:
            raise UserError(
                f"a phrase of {len(text):,} characters", where=place, remedy=f"Give 1 to {LONGEST_PHRASE} characters"
            )
        found.append(Hotword(text, weight))
        if len(found) > MOST_PHRASES:
            raise UserError(f"more than {MOST_PHRASES:,} phrases", where=where, remedy="Give fewer")
    if not found:
        raise UserError("no phrase", where=where, remedy="Give one phrase per line")
    return found


def read_hotwords(source: str | Sequence[str]) -> list[Hotword]:
    """The phrases of a file, or of a list of lines (:func:`parse_hotwords`).

    Raises:
        UserError: the file cannot be read, is not UTF-8, or has an invalid line.
    """
    if not isinstance(source, str):
        return parse_hotwords(source)
    remedy = "Give a text file with one phrase per line"
    try:
        if Path(source).stat().st_size > LARGEST_FILE:
            raise UserError(f"larger than {LARGEST_FILE / 1e6:g} MB", where=source, remedy=remedy)
        return parse_hotwords(Path(source).read_text(encoding="utf-8-sig").splitlines(), source)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=source, remedy=remedy) from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", where=source, remedy=remedy) from None


class TokenTexts:
    """Where words start among the tokens of a tokenizer, and tokenisations of a phrase.

    Attributes:
        starts: `(V,)` bool, whether the text of a token starts with a space or a CJK character.
        open: ids of tokens whose text ends with a space, so that the next token starts a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = range(len(SPECIAL), tokenizer.size)
        # A first piece loses its space, so each piece is preceded by one that has a text.
        first = next((each for each in ids if tokenizer.surfaces([each, each])[1].strip()), None)
        texts = [""] * len(SPECIAL)
        texts += [tokenizer.surfaces([each if first is None else first, each])[1] for each in ids]
        self.starts = torch.tensor([text[:1].isspace() or is_cjk(text[:1] or " ") for text in texts])
        self.open = {each for each, text in enumerate(texts) if text[-1:].isspace()}
        self._ids: dict[str, int] = {}
        for each, text in enumerate(texts):
            if text and "\ufffd" not in text:
                self._ids.setdefault(text, each)
        self._longest = max(map(len, self._ids), default=1)

    def tokenisations(self, text: str) -> list[tuple[int, ...]]:
        """Token sequences that spell a phrase: that of the tokenizer, and the shortest ones over the vocabulary.

        The tokenizer's own may be spelled in bytes where its pieces are not in the vocabulary, and a CIF student
        has a fixed number of tokens. For each number of pieces there is one sequence, that with the smallest sum of
        logarithms of ids, as ids are ordered by frequency or by merges.
        """
        own = tuple(self.tokenizer.encode(text))
        found = [own] if own and UNKNOWN not in own else []
        spaced = bool(own) and bool(self.starts[own[0]]) and not is_cjk(text[0])
        return list(dict.fromkeys([*found, *self._shortest(f" {text}" if spaced else text)]))

    def _shortest(self, text: str) -> list[tuple[int, ...]]:
        """The best sequence of each of the smallest numbers of pieces."""
        best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}, *({} for _ in text)]
        for end in range(1, len(text) + 1):
            for start in range(max(end - self._longest, 0), end):
                each = self._ids.get(text[start:end])
                if each is None:
                    continue
                cost = math.log(each + 1)
                for count, (total, before) in best[start].items():
                    if count + 1 not in best[end] or total + cost < best[end][count + 1][0]:
                        best[end][count + 1] = total + cost, (*before, each)
        counts = sorted(best[-1])
        return [best[-1][count][1] for count in counts if count <= counts[0] + FURTHER_PIECES]


@dataclass
class _Node:
    """A node of the trie: a sequence of tokens that begins at least one phrase.

    Attributes:
        token: last token.
        depth: number of tokens.
        credit: what its tokens add while the match is not complete.
        reward: score of the phrase that ends here, 0 without one.
        bounded: whether a phrase that ends here must be followed by the start of a word.
        paid: largest reward of phrases that end before, on the way from the root.
        potential: what the score includes at this node but loses if the match fails.
        due: what remains if a word starts after this node; `due_anywhere` likewise if none starts.
    """

    token: int
    depth: int
    children: dict[int, int] = field(default_factory=dict)
    credit: float = 0.0
    reward: float = 0.0
    bounded: bool = True
    fail: int = 0
    paid: float = 0.0
    own: tuple[float, float] = (0.0, 0.0)
    potential: float = 0.0
    due: float = 0.0
    due_anywhere: float = 0.0


ROOT, OPEN, ENDED, BEFORE = 0, 1, -1, -2
"""States: within a word without a match, at the start of a word without a match, after EOS, before the start symbol."""


class HotwordScorer:
    """Score of each next token by hotwords: a :class:`retort.decoding.prefix_tree.ConcatenableScorer`.

    The sum of the scores of a sequence with EOS is, over all positions at which a word starts, that of the best
    phrase that starts there and is followed by the start of a word, or 0.

    Args:
        phrases: token sequences with the reward of each and whether it must be followed by the start of a word.
        starts: `(V,)` bool, whether a word starts with the token.
        open: ids of tokens after which a word starts.
        anywhere: first tokens of phrases that may begin within a word.
    """

    def __init__(
        self,
        phrases: Mapping[tuple[int, ...], tuple[float, bool]],
        starts: Tensor,
        open: Iterable[int] = (),
        anywhere: Iterable[int] = (),
    ) -> None:
        self.starts = starts.cpu()
        self.open, self.anywhere = frozenset(open), frozenset(anywhere)
        self._starts: list[bool] = self.starts.tolist()
        self._nodes = [_Node(EOS, 0), _Node(EOS, 0)]
        for tokens, (reward, bounded) in phrases.items():
            self._add(tokens, reward, bounded)
        self._link()
        self._rows: dict[int, Tensor] = {}

    def _add(self, tokens: Sequence[int], reward: float, bounded: bool) -> None:
        node = ROOT
        for depth, token in enumerate(tokens, 1):
            if token not in self._nodes[node].children:
                self._nodes[node].children[token] = len(self._nodes)
                self._nodes.append(_Node(token, depth))
            node = self._nodes[node].children[token]
            own = self._nodes[node]
            own.credit = max(own.credit, reward * depth / len(tokens))
        last = self._nodes[node]
        if reward >= last.reward:
            last.reward, last.bounded = reward, bounded

    def _link(self) -> None:
        """Set failure links and potentials, breadth first."""
        root = self._nodes[ROOT]
        self._nodes[OPEN].children = root.children
        waiting = deque((ROOT, token, child) for token, child in root.children.items())
        while waiting:
            parent, token, index = waiting.popleft()
            before, node = self._nodes[parent], self._nodes[index]
            if parent != ROOT:
                node.fail = self._after(before.fail, token, before.token in self.open)
                node.paid = before.paid + before.own[0 if self._bounds(before.token, token) else 1]
            due = max(node.reward - node.paid, 0.0)
            node.own = due, 0.0 if node.bounded else due
            partial = max(node.credit - node.paid, 0.0) if node.children else 0.0
            shorter = self._nodes[node.fail]
            node.due, node.due_anywhere = due + shorter.due, node.own[1] + shorter.due_anywhere
            node.potential = max(due, partial) + shorter.due
            waiting.extend((index, each, child) for each, child in node.children.items())

    def _bounds(self, before: int, token: int) -> bool:
        """Whether a word starts with `token` after `before`."""
        return self._starts[token] or before in self.open

    def _after(self, node: int, token: int, opened: bool) -> int:
        """The longest suffix of `node` and `token` that is in the trie."""
        while node > OPEN and token not in self._nodes[node].children:
            node = self._nodes[node].fail
        if node > OPEN or self._starts[token] or opened or token in self.anywhere:
            return self._nodes[node].children.get(token, ROOT)
        return ROOT

    def _opened(self, state: int) -> bool:
        """Whether any token after the state starts a word."""
        return state == OPEN or (state > OPEN and self._nodes[state].token in self.open)

    def follow(self, state: int, token: int) -> tuple[float, int]:
        """The score of one token after a state, and the next state."""
        if state == ENDED:
            return 0.0, ENDED
        node, opened = self._nodes[state], self._opened(state)
        due = node.due if token == EOS or opened or self._starts[token] else node.due_anywhere
        if token == EOS:
            return due - node.potential, ENDED
        after = self._after(state, token, opened)
        gain = due - node.potential + self._nodes[after].potential
        return gain, OPEN if after == ROOT and token in self.open else after

    def start(self, rows: int, device: torch.device) -> Tensor:
        return torch.full((rows,), BEFORE, dtype=torch.int64)

    def step(self, state: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        after = [
            OPEN if each == BEFORE else self.follow(each, token)[1]
            for each, token in zip(state.tolist(), previous.tolist())
        ]
        scores = torch.stack([self._row(each) for each in after]).to(previous.device)
        return scores, torch.tensor(after, dtype=torch.int64)

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows.cpu()]

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """Concatenate states."""
        return torch.cat(list(states))

    def _row(self, state: int) -> Tensor:
        """Scores `(V,)` of all tokens after a state."""
        if state not in self._rows:
            if len(self._rows) * len(self._starts) * 4 >= CACHED_BYTES:
                self._rows.clear()
            self._rows[state] = self._make_row(state)
        return self._rows[state]

    def _make_row(self, state: int) -> Tensor:
        if state == ENDED:
            return torch.zeros(len(self._starts))
        node = self._nodes[state]
        elsewhere = node.due if self._opened(state) else node.due_anywhere
        row = torch.where(self.starts, node.due - node.potential, elsewhere - node.potential)
        special, suffix = {EOS, *node.children}, state
        while suffix > OPEN:
            suffix = self._nodes[suffix].fail
            special.update(self._nodes[suffix].children)
        tokens = sorted(special)
        row[tokens] = torch.tensor([self.follow(state, token)[0] for token in tokens], dtype=row.dtype)
        return row


@lru_cache(maxsize=4)
def token_texts(tokenizer: Tokenizer) -> TokenTexts:
    """The texts of a tokenizer's tokens; cached, since a server opens hotwords for every request that has some."""
    return TokenTexts(tokenizer)


def open_hotwords(
    options: DecodingOptions, tokenizer: Tokenizer, normalise: Normaliser
) -> tuple[HotwordScorer, list[str]]:
    """The scorer of the options' hotwords, and notes about phrases that the student cannot output.

    A phrase is matched as the student's normaliser writes it, and as it is given.

    Raises:
        UserError: the list cannot be read.
    """
    texts = token_texts(tokenizer)
    phrases: dict[tuple[int, ...], tuple[float, bool]] = {}
    anywhere, impossible = set(), []
    for hotword in read_hotwords(options.hotwords):
        weight = options.hotword_weight if hotword.weight is None else hotword.weight
        written = [text for text in dict.fromkeys((normalise(hotword.text), hotword.text)) if text]
        found = [(text, tokens) for text in written for tokens in texts.tokenisations(text)]
        if not found:
            impossible.append(hotword.text)
        reward = weight * min((len(tokens) for _, tokens in found), default=0)
        for text, tokens in found:
            before = phrases.get(tokens, (0.0, True))[0]
            phrases[tokens] = max(reward, before), not is_cjk(text[-1])
            if is_cjk(text[0]):
                anywhere.add(tokens[0])
    notes = []
    if impossible:
        shown = ", ".join(f"'{each}'" for each in impossible[:3])
        more = f" and {len(impossible) - 3:,} more" if len(impossible) > 3 else ""
        notes.append(f"hotwords with characters outside the student's vocabulary are ignored: {shown}{more}")
    return HotwordScorer(phrases, texts.starts, texts.open, anywhere), notes
