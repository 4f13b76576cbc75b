"""`retort lm train` with the soft labels of a larger language model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.lm.config import ModelConfig, SoftLabelConfig
from retort.lm.neural import NETWORKS, CausalBatch, NeuralLM
from retort.lm_training.run import train_lm
from retort.lm_training.soft_labels import SoftLabels
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, CharacterTokenizer

Read = Callable[..., Any]


@pytest.fixture
def read(causal_recipe: Read) -> Read:
    return partial(causal_recipe, "training.steps=60", "training.evaluate_steps=60")


def run(recipe: Any, root: Path) -> Any:
    return train_lm(recipe, root, lambda stage, done, total: None, lambda step, values: None)


def random_lm(seed: int) -> NeuralLM:
    torch.manual_seed(seed)
    letters = CharacterTokenizer(list("abcde"))
    config = ModelConfig(kind="lstm", layers=1, dim=8, heads=2, feedforward=16, dropout=0.0)
    return NeuralLM(NETWORKS["lstm"](config, letters.size), letters, Normaliser(NormaliserConfig()))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_that_of_a_slow_sum(temperature: float) -> None:
    student, teacher = random_lm(1), random_lm(2)
    rows = [[EOS, 4, 5, 6, EOS], [EOS, 8, EOS]]
    batch = CausalBatch.of([torch.tensor(row).numpy() for row in rows])
    config = SoftLabelConfig(model="any", weight=0.3, temperature=temperature)
    logits = student.network(batch.previous)[0][batch.mask].detach().requires_grad_()
    found = SoftLabels(config, teacher).mix(torch.tensor(7.0), logits, batch)
    expected = 0.7 * 7.0
    for row in rows:
        for place in range(len(row) - 1):
            history = torch.tensor([row[: place + 1]])
            with torch.no_grad():
                own = (student.network(history)[0][0, -1] / temperature).log_softmax(-1)
                label = (teacher.network(history)[0][0, -1] / temperature).softmax(-1)
            expected -= 0.3 * temperature**2 * sum(float(p * q) for p, q in zip(label, own))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.abs().sum() > 0


def test_a_model_with_the_labels_of_its_teacher_alone_learns_the_text(read: Read, tmp_path: Path) -> None:
    teacher = run(read("kind=ngram", "name=large"), tmp_path / "exp")
    plain = run(read("training.steps=1"), tmp_path / "exp")
    taught = run(read("name=taught", "soft_labels.model=large", "soft_labels.weight=1"), tmp_path / "exp")
    assert teacher.score.perplexity < taught.score.perplexity < 4.0 < plain.score.perplexity


def test_a_teacher_that_does_not_fit_is_refused(read: Read, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        run(read("soft_labels.model=nowhere"), tmp_path / "exp")
    run(read("kind=ngram", "name=other", "tokenizer.kind=characters"), tmp_path / "exp")
    with pytest.raises(UserError, match="tokens"):
        run(read("name=toy2", "soft_labels.model=other"), tmp_path / "exp")
    with pytest.raises(UserError, match="causal"):
        read("kind=ngram", "soft_labels.model=other")
