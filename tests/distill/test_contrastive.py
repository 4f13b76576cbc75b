"""The N x N contrastive loss against the gather of N x K x D vectors, and its sampling against chance."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from retort.config.schema import RowConfig
from retort.distill import contrastive_hits, contrastive_logits, contrastive_loss
from retort.distill.losses.contrastive import _STRIP, contrastive_row, draw_ids, draw_rows
from retort.distill.positions import Targets


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(size: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    student, teacher = torch.randn(2, size, dim, generator=generator, dtype=torch.float64).to(dtype)
    return student, teacher


def gathered_loss(
    student: Tensor, teacher: Tensor, drawn: Tensor, barred: Tensor, temperature: float
) -> Tensor:
    """The published formulation: gather K vectors an anchor, broadcast the cosine, bar ids with -1e9."""
    size = len(student)
    ids = torch.stack([row.nonzero().squeeze(1) for row in drawn])
    positive = F.cosine_similarity(student, teacher, dim=-1, eps=1e-6) / temperature
    negatives = F.cosine_similarity(student[:, None], teacher[ids], dim=-1, eps=1e-6) / temperature
    negatives = negatives.masked_fill(barred.gather(1, ids), -1e9)
    logits = torch.cat([positive[:, None], negatives], dim=1)
    return F.cross_entropy(logits, torch.zeros(size, dtype=torch.int64), reduction="none")


def barred_slowly(sources: Tensor | None, tokens: Tensor | None, size: int) -> Tensor:
    barred = torch.eye(size, dtype=torch.bool)
    for i in range(size):
        for j in range(size):
            if sources is not None:
                (a, b), (c, d) = sources[i].tolist(), sources[j].tolist()
                barred[i, j] |= bool(set(range(a, b)) & set(range(c, d)))
            if tokens is not None:
                barred[i, j] |= bool(tokens[i] == tokens[j])
    return barred


@pytest.mark.parametrize("negatives", [1, 7, 30, 39, 40, 700])
@pytest.mark.parametrize("with_sources", [False, True])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_equals_the_gather_of_the_same_ids(negatives: int, with_sources: bool, with_tokens: bool) -> None:
    size = 40
    student, teacher = vectors(size, 6)
    student.requires_grad_()
    start = torch.randint(0, 30, (size,), generator=seeded(1))
    sources = torch.stack([start, start + torch.randint(0, 4, (size,), generator=seeded(2))], 1)
    tokens = torch.randint(0, 9, (size,), generator=seeded(3))
    extras: dict[str, Any] = {
        "sources": sources if with_sources else None,
        "tokens": tokens if with_tokens else None,
    }
    loss = contrastive_loss(
        student,
        teacher,
        temperature=0.1,
        negatives=negatives,
        generator=seeded(4),
        reduction="none",
        **extras,
    )
    drawn = draw_ids(size, negatives, generator=seeded(4))
    expected = gathered_loss(student, teacher, drawn, barred_slowly(**extras, size=size), 0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand(size, generator=seeded(5), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((each * weights).sum(), student)[0] for each in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "negatives", "drawn"), [(6, 2, 2), (6, 5, 5), (6, 6, 4), (5, 700, 4), (9, 700, 7)]
)
def test_every_anchor_draws_exactly_k(size: int, negatives: int, drawn: int) -> None:
    for seed in range(20):
        assert (draw_ids(size, negatives, generator=seeded(seed)).sum(1) == drawn).all()


def test_draws_exactly_k_in_every_strip() -> None:
    size = 2 * _STRIP + 5
    assert (draw_ids(size, 3, generator=seeded(0)).sum(1) == 3).all()


@pytest.mark.parametrize("negatives", [3, 700])
@pytest.mark.parametrize("ends", [[40], [_STRIP], [0, 7, _STRIP - 1, _STRIP + 1, 2 * _STRIP], [5, 5]])
def test_parts_of_a_draw_make_the_whole(ends: list[int], negatives: int) -> None:
    """As several processes draw: each the rows of its own anchors, with one seed."""
    size = 2 * _STRIP + 5
    whole = draw_rows(size, negatives, range(size), seed=9)
    assert (whole.sum(1) == negatives).all()
    bounds = [0, *ends, size]
    parts = [draw_rows(size, negatives, range(*each), seed=9) for each in pairwise(bounds)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draw_rows(size, negatives, range(size), seed=10), whole)
    strips = whole.split(_STRIP)
    assert not torch.equal(strips[0], strips[1])


@pytest.mark.parametrize("negatives", [2, 4])
def test_every_set_of_ids_is_equally_likely(negatives: int) -> None:
    size, rounds = 6, 1500
    index = {ids: place for place, ids in enumerate(combinations(range(size), negatives))}
    counts = torch.zeros(size, len(index))
    generator = seeded(11)
    for _ in range(rounds):
        for anchor, row in enumerate(draw_ids(size, negatives, generator=generator)):
            counts[anchor, index[tuple(row.nonzero().squeeze(1).tolist())]] += 1
    for anchor in range(size):
        assert stats.chisquare(counts[anchor].numpy()).pvalue > 1e-3
    assert stats.chi2_contingency(counts.numpy()).pvalue > 1e-3


def test_ids_are_uniform_and_anchors_independent_at_full_size() -> None:
    size, negatives = 960, 700
    share = negatives / size
    mask = draw_ids(size, negatives, generator=seeded(3)).double()
    deviation = (mask.sum(0) - size * share) / (size * share * (1 - share)) ** 0.5
    # The columns' counts are bound to one sum, hence size - 1 degrees of freedom.
    assert 1e-3 < stats.chi2.sf(float(deviation.square().sum()), size - 1) < 1 - 1e-3
    centred = mask - share
    between = (centred @ centred.T)[torch.triu_indices(size, size, 1).unbind()]
    variance = size * (share * (1 - share)) ** 2 * size / (size - 1)
    assert abs(float(between.mean())) < 4 * (variance / len(between)) ** 0.5
    assert float(between.square().mean()) == pytest.approx(variance, rel=0.02)


def test_own_id_counts_as_drawn_but_is_no_negative() -> None:
    student, teacher = vectors(50, 4)
    logits = contrastive_logits(student, teacher, negatives=20, generator=seeded(0))
    drawn = draw_ids(50, 20, generator=seeded(0))
    found = logits.isfinite().fill_diagonal_(False).sum(1)
    assert torch.equal(found, 20 - drawn.diagonal().long())
    assert set(found.tolist()) == {19, 20}
    assert logits.diagonal().isfinite().all()


def test_logits_are_cosines_over_temperature() -> None:
    student, teacher = vectors(8, 5, dtype=torch.float32)
    logits = contrastive_logits(student, teacher, temperature=0.5, negatives=7, generator=seeded(0))
    expected = F.cosine_similarity(student[:, None], teacher[None], dim=-1) / 0.5
    finite = logits.isfinite()
    assert finite.sum() > 8
    torch.testing.assert_close(logits[finite], expected[finite])


def test_empty_intervals_bar_nothing() -> None:
    student, teacher = vectors(6, 3)
    sources = torch.tensor([[2, 2], [0, 5], [0, 0], [0, 0], [1, 1], [4, 4]])
    plain, barred = (
        contrastive_logits(student, teacher, negatives=5, sources=each, generator=seeded(0))
        for each in (None, sources)
    )
    torch.testing.assert_close(plain, barred)


def test_gradients_of_both_sides() -> None:
    student, teacher = (each.requires_grad_() for each in vectors(7, 3))
    sources = torch.tensor([[0, 1], [0, 1], [1, 3], [2, 4], [5, 6], [6, 7], [7, 8]])

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return contrastive_loss(
            student,
            teacher,
            temperature=0.3,
            negatives=4,
            sources=sources,
            generator=seeded(1),
            reduction="none",
        )

    assert torch.autograd.gradcheck(loss, (student, teacher))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("size", [0, 1])
def test_without_negatives_the_loss_is_zero(size: int, reduction: Any) -> None:
    student = torch.ones(size, 3, requires_grad=True)
    loss = contrastive_loss(student, torch.rand(size, 3), reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.shape == (size, 3)
    assert (student.grad == 0).all()


def test_all_negatives_barred_is_zero_and_never_nan() -> None:
    student = torch.randn(9, 3, generator=seeded(0)).requires_grad_()
    loss = contrastive_loss(
        student, torch.zeros(9, 3), negatives=4, tokens=torch.zeros(9, dtype=torch.int64), reduction="none"
    )
    loss.sum().backward()
    assert (loss == 0).all()
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_zero_vectors_give_finite_gradients() -> None:
    student, teacher = torch.zeros(5, 3, requires_grad=True), torch.randn(5, 3, generator=seeded(0))
    contrastive_loss(student, teacher, negatives=3).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_reductions_agree() -> None:
    student, teacher = vectors(10, 4)

    def loss(reduction: Any) -> Tensor:
        return contrastive_loss(student, teacher, negatives=5, generator=seeded(0), reduction=reduction)

    assert loss("none").shape == (10,)
    torch.testing.assert_close(loss("sum"), loss("none").sum())
    torch.testing.assert_close(loss("mean"), loss("none").mean())


@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_float32_whatever_comes_in(autocast: bool) -> None:
    student, teacher = (each.bfloat16() for each in vectors(30, 16, dtype=torch.float32))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = contrastive_loss(student, teacher, negatives=20, generator=seeded(0), reduction="none")
    expected = contrastive_loss(
        student.double(), teacher.double(), negatives=20, generator=seeded(0), reduction="none"
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_a_tie_is_no_hit() -> None:
    teacher = torch.eye(4)
    assert contrastive_hits(contrastive_logits(teacher, teacher, negatives=3)).all()
    assert not contrastive_hits(contrastive_logits(torch.ones(4, 4), torch.ones(4, 4), negatives=3)).any()
    wrong = contrastive_logits(teacher.roll(1, 0), teacher, negatives=3, generator=seeded(0))
    assert torch.equal(contrastive_hits(wrong), wrong.amax(1) == 0)


def test_the_row_excludes_same_tokens_only_when_asked() -> None:
    student, teacher = vectors(12, 4)
    spans = torch.arange(12)[:, None] + torch.tensor([0, 1])
    targets = Targets(teacher, spans, torch.zeros(12, dtype=torch.int64))
    row = RowConfig(tap="acoustic", teacher="bert", loss="contrastive", same_token_negatives=False)
    assert (contrastive_row(student, targets, row).values == 0).all()
    row.same_token_negatives = True
    assert (contrastive_row(student, targets, row).values > 0).any()
    row.same_token_negatives = False
    with pytest.raises(ValueError, match="same_token_negatives"):
        contrastive_row(student, targets._replace(tokens=None), row)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"sources": torch.zeros(3, 2, dtype=torch.int64)}, r"sources \(3, 2\)"),
        ({"tokens": torch.zeros(4, 1, dtype=torch.int64)}, r"tokens \(4, 1\)"),
        ({"teacher": torch.zeros(4, 3)}, r"teacher \(4, 3\)"),
        ({"teacher": torch.zeros(4, 2, dtype=torch.int64)}, "floating point"),
        ({"reduction": "average"}, "reduction is 'average'"),
    ],
)
def test_refuses_what_does_not_belong_together(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"student": torch.ones(4, 2), "teacher": torch.ones(4, 2)}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**(arguments | changed))
