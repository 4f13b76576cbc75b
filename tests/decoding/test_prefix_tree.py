from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retort.config.schema import NormaliserConfig
from retort.decoding.fusion import Fusion
from retort.decoding.prefix_tree import NO_NODE, ROOT, LmScores, PrefixTree
from retort.lm.config import ModelConfig
from retort.lm.neural import NETWORKS, NeuralLM
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, CharacterTokenizer

LETTERS = CharacterTokenizer(list("abc"))
CPU = torch.device("cpu")


class Steps:
    """A scorer that notes which sequences were in one step."""

    def __init__(self) -> None:
        self.asked: list[list[list[int]]] = []

    def start(self, rows: int, device: torch.device) -> Any:
        return [[]] * rows

    def step(self, state: Any, previous: Tensor) -> tuple[Tensor, Any]:
        after = [[*own, token] for own, token in zip(state, previous.tolist())]
        self.asked.append(after)
        return torch.zeros(len(after), LETTERS.size), after

    def select(self, state: Any, rows: Tensor) -> Any:
        return [state[row] for row in rows.tolist()]

    def join(self, states: Any) -> Any:
        return [row for state in states for row in state]


def test_nodes_are_equal_where_sequences_are() -> None:
    tree = PrefixTree()
    first = tree.child(ROOT, 5)
    second = tree.child(first, 6)
    assert tree.child(ROOT, 5) == first != second
    assert tree.parent(second) == (first, 6)
    assert tree.children(torch.tensor([ROOT, first]), torch.tensor([5, 6])).tolist() == [first, second]
    assert (tree.tokens(second), tree.tokens(ROOT)) == ([5, 6], [])


def test_pruned_hypotheses_are_removed_from_the_cache() -> None:
    tree, scorer = PrefixTree(), Steps()
    lm_scores = LmScores(scorer, CPU)
    first = tree.child(ROOT, 5)
    second = tree.child(first, 6)
    lm_scores.after([ROOT, first], tree)
    lm_scores.after([second, first], tree)
    lm_scores.after([second], tree)
    assert scorer.asked == [[[EOS]], [[EOS, 5]], [[EOS, 5, 6]]]
    with pytest.raises(KeyError):
        lm_scores.after([tree.child(ROOT, 4)], tree)


def test_all_of_one_length_are_in_one_step() -> None:
    tree, scorer = PrefixTree(), Steps()
    lm_scores = LmScores(scorer, CPU)
    four, five = tree.child(ROOT, 4), tree.child(ROOT, 5)
    lm_scores.after([ROOT, four], tree)
    lm_scores.after([ROOT, four, five], tree)
    lm_scores.after([tree.child(four, 6), ROOT, tree.child(five, 6), tree.child(ROOT, 6)], tree)
    assert scorer.asked[3:] == [[[EOS, 4, 6], [EOS, 5, 6]], [[EOS, 6]]]


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_sequences_of_different_lengths_are_read_as_alone(kind: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind](ModelConfig(kind=kind, layers=2, dim=8, heads=2, feedforward=16), LETTERS.size)
    lm = NeuralLM(network, LETTERS, Normaliser(NormaliserConfig()))
    tree, lm_scores = PrefixTree(), LmScores(Fusion(lm, 0.5), CPU)
    nodes = torch.full((2, 1), ROOT)
    generator = torch.Generator().manual_seed(1)
    for width in (2, 3, 3, 3):
        lm_scores.after_all(nodes, tree)
        before = nodes.gather(1, torch.randint(nodes.shape[1], (2, width), generator=generator))
        nodes = before.clone()
        output = torch.randint(3, LETTERS.size, (2, width - 1), generator=generator)
        nodes[:, 1:] = tree.children(before[:, 1:].flatten(), output.flatten()).view(2, -1)
    found = lm_scores.after_all(nodes, tree)
    sequences = [[tree.tokens(node) for node in row] for row in nodes.tolist()]
    assert len({len(ids) for row in sequences for ids in row}) > 2
    for row, each in enumerate(sequences):
        for column, ids in enumerate(each):
            state, log_probs = lm.start(1, CPU), torch.zeros(0)
            for token in [EOS, *ids]:
                log_probs, state = lm.step(state, torch.tensor([token]))
            torch.testing.assert_close(found[row, column], 0.5 * log_probs[0], atol=1e-5, rtol=1e-5)


def test_missing_hypotheses_have_the_scores_of_another_one() -> None:
    tree, lm_scores = PrefixTree(), LmScores(Steps(), CPU)
    assert lm_scores.after_all(torch.tensor([[NO_NODE, ROOT], [ROOT, NO_NODE]]), tree).shape == (
        2,
        2,
        LETTERS.size,
    )
