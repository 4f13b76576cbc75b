"""Consistency between two views: the formula in loops, its gradient, and batches that hold both views."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from lhotse import CutSet
from torch import Tensor
from torch.nn import functional as F

from retort.config.schema import Recipe, RowConfig
from retort.distill import Objective, Row, consistency_loss
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets
from retort.text.tokenizers import CharacterTokenizer
from retort.training.batches import UtteranceDataset

SIZE = 5


def make_row() -> Row:
    return Row(RowConfig(tap="ctc", loss="consistency"), SIZE, 0)


def views(padding: int = 0) -> Tap:
    """Two utterances of 4 and 2 frames, twice; the padding is NaN."""
    lengths = torch.tensor([4, 2, 4, 2])
    values = torch.full((4, 4 + padding, SIZE), torch.nan)
    generator = torch.Generator().manual_seed(0)
    for row, length in enumerate(lengths.tolist()):
        values[row, :length] = torch.randn(length, SIZE, generator=generator)
    return Tap(values.requires_grad_(), lengths, "frame")


def slow(first: list[float], second: list[float]) -> float:
    """KL(second || first) of softmaxes."""
    p, q = ([math.exp(each) / sum(map(math.exp, of)) for each in of] for of in (second, first))
    return sum(x * math.log(x / y) for x, y in zip(p, q))


@pytest.mark.parametrize("padding", [0, 3])
def test_both_directions_of_every_frame(padding: int) -> None:
    tap = views(padding)
    result = make_row()(tap, None)
    rows = tap.values.tolist()
    expected = 0.0
    for first, length in ((0, 4), (1, 2)):
        for frame in range(length):
            pair = rows[first][frame], rows[first + 2][frame]
            expected += slow(*pair) + slow(*reversed(pair))
    assert float(result.total) == pytest.approx(expected, rel=1e-5)
    assert result.count == 12
    result.total.backward()
    assert tap.values.grad is not None
    assert tap.values.grad.isfinite().all()


def test_equal_views_have_no_loss_and_the_target_gets_no_gradient() -> None:
    logits = torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True)
    other = torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True)
    assert consistency_loss(logits, logits).item() == pytest.approx(0)
    consistency_loss(logits, other, reduction="sum").backward()
    assert other.grad is None
    torch.testing.assert_close(logits.grad, logits.softmax(-1).detach() - other.softmax(-1).detach())
    expected = F.kl_div(logits.log_softmax(-1), other.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(consistency_loss(logits, other, reduction="none"), expected)


def test_gradient() -> None:
    other = torch.randn(4, SIZE, dtype=torch.float64)
    logits = torch.randn(4, SIZE, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda each: consistency_loss(each, other, reduction="none"), logits)


def test_halves_that_are_no_views_are_an_error() -> None:
    tap = views()
    with pytest.raises(ValueError, match="two views"):
        make_row()(replace(tap, lengths=torch.tensor([4, 2, 3, 2])), None)
    with pytest.raises(ValueError, match="two views"):
        make_row()(Tap(tap.values[:3], tap.lengths[:3], "frame"), None)
    nothing = make_row()(Tap(torch.zeros(1, 1, SIZE), torch.zeros(1, dtype=torch.int64), "frame"), None)
    assert (nothing.count, float(nothing.total)) == (0, 0)


def test_an_objective_needs_no_teacher_for_it() -> None:
    rows = [RowConfig(tap="ctc", loss="consistency", weight=0.2)]
    objective = Objective(rows, {"ctc": SIZE}, {}, {"ctc": "frame"})
    assert objective.needs == set()
    tap = views()

    def targets(teacher: str, unit: str) -> TeacherTargets:
        raise AssertionError

    result = objective({"ctc": tap}, targets)
    torch.testing.assert_close(result.token_sum, 0.2 * make_row()(tap, None).total)


def test_a_batch_holds_both_views_of_each_utterance(read_recipe: Callable[..., Recipe], cuts: CutSet) -> None:
    """The first views are those of a run without the row."""
    plain = read_recipe("augment.time_masks=4", "augment.frequency_masks=2")
    recipe = replace(plain, distill=[RowConfig(tap="ctc", loss="consistency")])
    tokenizer = CharacterTokenizer(["▁", *"abcdefgh"])

    def lengths(frames: Tensor) -> Tensor:
        return frames // 2

    some = CutSet.from_cuts(list(cuts)[:3])
    alone, both = (UtteranceDataset(each, tokenizer, lengths, None)[some] for each in (plain, recipe))
    assert both.ids == alone.ids * 2
    assert torch.equal(both.tokens, alone.tokens.repeat(2, 1))
    assert torch.equal(both.feature_lengths, alone.feature_lengths.repeat(2))
    assert torch.equal(both.features[: len(alone.ids)], alone.features)
    assert not torch.equal(both.features[len(alone.ids) :], alone.features)
