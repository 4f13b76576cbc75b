"""Normalisation, control rows, words, initial projections and the share of the gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.distill import Objective, Row, regression_loss
from retort.distill.gradients import GradientShare, gradient_norm
from retort.distill.row import RowResult, of_another
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets

LENGTHS = [4, 2, 5]


def make_row(**changed: Any) -> Row:
    torch.manual_seed(0)
    return Row(
        RowConfig(**({"tap": "acoustic", "teacher": "bert", "loss": "regression"} | changed)), 3, 4, None, 9
    )


def make_batch(padding: int = 0) -> tuple[Tap, TeacherTargets, Tensor]:
    generator = torch.Generator().manual_seed(2)
    size = max(LENGTHS) + padding
    lengths = torch.tensor(LENGTHS)
    valid = torch.arange(size) < lengths[:, None]
    values, vectors = (torch.full((3, size, width), torch.nan) for width in (3, 4))
    for row, length in enumerate(LENGTHS):
        values[row, :length] = torch.randn(length, 3, generator=generator)
        vectors[row, :length] = 5 + 2 * torch.randn(length, 4, generator=generator)
    place = torch.arange(valid.numel()).view(valid.shape)
    sources = torch.stack([place, place + 1], -1) * valid[..., None]
    tokens = torch.randint(3, 9, (3, size), generator=torch.Generator().manual_seed(3))
    return Tap(values, lengths, "token"), TeacherTargets(vectors, valid, sources), tokens


def flat(values: Tensor) -> Tensor:
    return torch.cat([each[:length] for each, length in zip(values, LENGTHS)])


@pytest.mark.parametrize("padding", [0, 3])
def test_normalised_targets(padding: int) -> None:
    tap, targets, tokens = make_batch(padding)
    student, vectors = flat(tap.values), flat(targets.vectors)
    row = make_row(normalise="standard")
    row.mean.copy_(vectors.mean(0))
    row.scale.copy_(vectors.std(0))
    wanted = (vectors - vectors.mean(0)) / vectors.std(0)
    total = row(tap, targets, tokens).total
    torch.testing.assert_close(total, regression_loss(row.projection(student), wanted, reduction="sum"))
    layered = make_row(normalise="layer_norm")
    wanted = torch.stack(
        [(each - each.mean()) / (each.var(unbiased=False) + 1e-5).sqrt() for each in vectors]
    )
    total = layered(tap, targets, tokens).total
    torch.testing.assert_close(total, regression_loss(layered.projection(student), wanted, reduction="sum"))


def test_shuffled_vectors_are_of_another_utterance() -> None:
    owners = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
    there = of_another(owners)
    assert (owners[there] == (owners + 1) % 3).all()
    assert there.tolist() == [4, 5, 4, 5, 6, 7, 0, 1, 2, 3, 0]
    tap, targets, tokens = make_batch()
    row = make_row(control="shuffled")
    expected = regression_loss(
        row.projection(flat(tap.values)), flat(targets.vectors)[there], reduction="sum"
    )
    torch.testing.assert_close(row(tap, targets, tokens).total, expected)
    lonely = TeacherTargets(targets.vectors[:1], targets.valid[:1], targets.sources[:1])
    result = row(Tap(tap.values[:1], tap.lengths[:1], "token"), lonely, tokens[:1])
    assert (result.count, result.total.item()) == (0, 0)


def test_static_vectors_are_those_of_the_tokens() -> None:
    tap, targets, tokens = make_batch()
    row = make_row(control="static")
    row.static.copy_(torch.randn(9, 4))
    expected = regression_loss(
        row.projection(flat(tap.values)), row.static[flat(tokens[..., None])[:, 0]], reduction="sum"
    )
    torch.testing.assert_close(row(tap, targets, tokens).total, expected)


def test_with_words_eos_is_not_compared() -> None:
    tap, targets, tokens = make_batch()
    result = make_row(valid="word_end")(tap, targets, tokens)
    assert result.count == sum(LENGTHS) - 3


def test_a_projection_of_zeros_predicts_zeros_and_needs_a_loss_that_depends_on_norms() -> None:
    tap, targets, tokens = make_batch()
    result = make_row(init="zero")(tap, targets, tokens)
    torch.testing.assert_close(result.total, result.metrics["power"].sum)
    for loss in ("cosine", "contrastive"):
        with pytest.raises(UserError, match="zero"):
            make_row(init="zero", loss=loss)


class TestShare:
    def test_the_norm_is_that_of_the_whole_gradient(self) -> None:
        layer = nn.Linear(3, 2)
        unused = nn.Parameter(torch.zeros(2))
        loss = layer(torch.randn(5, 3)).square().sum()
        norm = gradient_norm(loss, [*layer.parameters(), unused])
        loss.backward()
        expected = torch.cat([each.grad.flatten() for each in layer.parameters()]).norm()  # type: ignore[union-attr]
        torch.testing.assert_close(norm, expected)
        assert gradient_norm(torch.zeros(()), [unused]) == 0

    def test_the_weight_follows_a_running_estimate(self) -> None:
        share = GradientShare(0.5, 3.0)
        assert share.weight() == 3.0
        share.observe(torch.tensor(0.0), torch.tensor(1.0))
        assert share.weight() == 3.0
        share.observe(torch.tensor(4.0), torch.tensor(2.0))
        assert share.weight() == pytest.approx(0.25)
        share.observe(torch.tensor(8.0), torch.tensor(2.0))
        assert share.weight() == pytest.approx(0.5 * 2 / 4.4)
        other = GradientShare(0.5, 3.0)
        other.load_state_dict(share.state_dict())
        assert other.weight() == share.weight()

    def test_the_weighted_gradient_has_its_share_and_is_logged(self) -> None:
        config = RowConfig(tap="acoustic", teacher="bert", loss="regression", share=0.3, share_steps=10)
        torch.manual_seed(0)
        objective = Objective([config], {"acoustic": 3}, {"bert": 4})
        layer = nn.Linear(2, 3)
        tap, targets, tokens = make_batch()
        inputs = torch.randn(*tap.values.shape[:2], 2)
        values = layer(inputs)
        own = values[targets.valid].cos().sum()
        calls = []

        def measure(name: str, result: RowResult) -> tuple[Tensor, Tensor]:
            calls.append(name)
            return gradient_norm(result.total, list(layer.parameters())), gradient_norm(
                own, list(layer.parameters())
            )

        for step in (20, 21):
            found = objective(
                {"acoustic": Tap(values, tap.lengths, "token")}, lambda *_: targets, tokens, step, measure
            )
        assert calls == ["acoustic"]
        row = gradient_norm(found.token_sum, list(layer.parameters()))
        torch.testing.assert_close(row, 0.3 * gradient_norm(own, list(layer.parameters())))
        weight = found.metrics["acoustic.regression.weight"]
        torch.testing.assert_close(found.token_sum, weight.sum * found.metrics["acoustic.regression"].sum)
