from __future__ import annotations

import pytest
import torch

from retort.nn.predictor import PREDICTORS, Joiner, Predictor, TransducerConfig

VOCABULARY, START = 11, 2


def build(kind: str, context: int = 2, layers: int = 1, dropout: float = 0.0) -> Predictor:
    torch.manual_seed(0)
    config = TransducerConfig(predictor=kind, context=context, layers=layers, dim=6, dropout=dropout)
    return PREDICTORS[kind](config, VOCABULARY).eval()


@pytest.mark.parametrize(
    ("kind", "context", "layers"),
    [("stateless", 1, 1), ("stateless", 2, 1), ("stateless", 4, 1), ("lstm", 2, 1), ("lstm", 2, 2)],
)
@torch.no_grad()
def test_step_by_step_is_all_at_once(kind: str, context: int, layers: int) -> None:
    predictor = build(kind, context, layers)
    tokens = torch.randint(3, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1))
    whole = predictor(tokens, START)
    assert whole.shape == (3, 6, 6)
    predicted, state = predictor.start(3, START)
    torch.testing.assert_close(predicted, whole[:, 0])
    for place in range(5):
        predicted, state = predictor.step(state, tokens[:, place])
        torch.testing.assert_close(predicted, whole[:, place + 1])
        if place == 2:  # rows may go their own ways
            alone, _ = predictor.step([each[[1]] for each in state], tokens[[1], 3])
            torch.testing.assert_close(alone, whole[[1], 4])
    torch.testing.assert_close(predictor(tokens[:, :0], START), whole[:, :1])


@pytest.mark.parametrize(("kind", "knows"), [("stateless", 2), ("lstm", 5)])
@torch.no_grad()
def test_length_of_the_context(kind: str, knows: int) -> None:
    predictor = build(kind)
    tokens = torch.randint(3, VOCABULARY - 1, (1, 5), generator=torch.Generator().manual_seed(2))
    whole = predictor(tokens, START)
    for place in range(5):
        other = tokens.clone()
        other[0, place] += 1
        moved = (predictor(other, START) != whole).any(-1)[0].nonzero()[:, 0].tolist()
        assert moved == list(range(place + 1, min(place + 1 + knows, 6)))


@pytest.mark.parametrize("kind", ["stateless", "lstm"])
def test_dropout_while_training_alone(kind: str) -> None:
    predictor = build(kind, dropout=0.5)
    tokens = torch.randint(3, VOCABULARY, (2, 9))
    assert torch.equal(predictor(tokens, START), predictor(tokens, START))
    predictor.train()
    assert not torch.equal(predictor(tokens, START), predictor(tokens, START))


def test_the_joiner_over_lattices_is_the_joiner_cell_by_cell() -> None:
    torch.manual_seed(0)
    joiner = Joiner(5, 6, 7, VOCABULARY)
    hidden, predicted = torch.randn(2, 4, 5), torch.randn(2, 4, 6)
    outputs, read = joiner.project_encoder(hidden), joiner.project_predictor(predicted)
    logits = joiner.over_lattices(outputs, read, torch.tensor([4, 2]), torch.tensor([1, 3]))
    cells = [(0, t, u) for t in range(4) for u in range(2)] + [(1, t, u) for t in range(2) for u in range(4)]
    assert logits.shape == (len(cells), VOCABULARY)
    for row, (owner, frame, place) in zip(logits, cells):
        states, one = joiner(outputs[owner, frame], read[owner, place])
        torch.testing.assert_close(row, one)
        expected = joiner.output(
            torch.tanh(joiner.acoustic(hidden[owner, frame]) + joiner.linguistic(predicted[owner, place]))
        )
        torch.testing.assert_close(row, expected)
        assert states.abs().max() < 1.0
    nothing = joiner.over_lattices(outputs, read, torch.tensor([0, 0]), torch.tensor([1, 3]))
    assert nothing.shape == (0, VOCABULARY)
