from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from retort.config.schema import NormaliserConfig
from retort.lm.causal import BARRED, IMPOSSIBLE
from retort.lm.config import ModelConfig
from retort.lm.neural import NETWORKS, CausalBatch, NeuralLM
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, CharacterTokenizer

LETTERS = CharacterTokenizer(list("abcde"))
TEXTS = [[4, 5, 6, 7], [8, 8], [], [7, 6, 5, 4, 4, 3]]
CPU = torch.device("cpu")


def make(kind: str, layers: int = 2, pieces: int = 8192) -> NeuralLM:
    """A model of large random weights."""
    torch.manual_seed(1)
    config = ModelConfig(kind=kind, layers=layers, dim=8, heads=2, feedforward=16, dropout=0.3)
    network = NETWORKS[kind](config, LETTERS.size)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return NeuralLM(network, LETTERS, Normaliser(NormaliserConfig()), pieces)


def slow_score(model: NeuralLM, text: Sequence[int]) -> list[float]:
    """One sentence, one piece after the other, the whole history read again each time."""
    found = []
    for place, piece in enumerate([*text, EOS]):
        with torch.no_grad():
            logits, _ = model.network(torch.tensor([[EOS, *text[:place]]]))
        found.append(float(logits[0, -1].log_softmax(-1)[piece]))
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_neither_padding_nor_batches_change_a_score(kind: str) -> None:
    expected = [slow_score(make(kind), text) for text in TEXTS]
    for pieces in (1, 9, 8192):
        scores = make(kind, pieces=pieces).score(TEXTS)
        for found, each in zip(scores, expected, strict=True):
            assert found.dtype == torch.float32
            assert found.tolist() == pytest.approx(each, abs=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_cached_steps_are_the_whole_pass(kind: str) -> None:
    model = make(kind)
    texts = torch.tensor([[EOS, 4, 5, 6, 7], [EOS, 8, 8, 4, 3]])
    whole = model.network(texts)[0].log_softmax(-1)
    state = model.start(2, CPU)
    for place in range(texts.shape[1]):
        log_probs, state = model.step(state, texts[:, place])
        torch.testing.assert_close(log_probs, whole[:, place], atol=1e-5, rtol=1e-5)
        assert log_probs.isfinite().all()
        assert (log_probs[:, BARRED] < IMPOSSIBLE / 2).all()
        assert log_probs.exp().sum(-1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
        state = model.select(state, torch.tensor([1, 0, 1]))
        assert all(len(each) == 3 for each in state)
        state = model.select(state, torch.tensor([1, 0]))
    torch.testing.assert_close(model.distributions(texts), whole)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_batch_asks_for_every_piece_and_the_end(kind: str) -> None:
    model = make(kind)
    batch = CausalBatch.of([np.array([EOS, *text, EOS]) for text in TEXTS])
    assert batch.previous.tolist()[1] == [EOS, 8, 8, 1, 1, 1, 1]
    assert batch.targets.tolist() == [4, 5, 6, 7, 2, 8, 8, 2, 2, 7, 6, 5, 4, 4, 3, 2]
    logits = model.network(batch.previous)[0][batch.mask]
    output = -torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    torch.testing.assert_close(output, torch.cat(model.score(TEXTS)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_comes_later_does_not_tell(kind: str) -> None:
    model = make(kind)
    one, other = model.score([[4, 5, 6], [4, 5, 8]])
    assert torch.equal(one[:2], other[:2])
    assert not torch.equal(one[2:], other[2:])
