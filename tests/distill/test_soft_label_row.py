"""A row of soft labels on batches whose padding holds rubbish, against its loss position by position."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retort.config.schema import RowConfig
from retort.distill import Objective, Row
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets, empty_targets

LENGTHS, VOCABULARY, K = [4, 1, 6, 3], 9, 4


def make_row(**changed: Any) -> Row:
    return Row(
        RowConfig(**({"tap": "tokens", "teacher": "lm", "loss": "soft_label"} | changed)), VOCABULARY, K
    )


def make_batch(k: int = K, padding: int = 0) -> tuple[Tap, TeacherTargets]:
    """The teacher says nothing of position 1 of the first utterance, and nothing of the last."""
    generator = torch.Generator().manual_seed(1)
    batch, longest = len(LENGTHS), max(LENGTHS) + padding
    lengths = torch.tensor(LENGTHS)
    padded = torch.arange(longest) >= lengths[:, None]
    logits = torch.randn(batch, longest, VOCABULARY, generator=generator)
    posterior = torch.randn(batch, longest, VOCABULARY, generator=generator).softmax(-1).topk(k)
    probs, ids = posterior.values.clone(), posterior.indices
    logits[padded], probs[padded] = torch.nan, torch.nan
    valid = ~padded
    valid[0, 1] = valid[3] = False
    sources = torch.zeros(batch, longest, 2, dtype=torch.int64)
    return Tap(logits.requires_grad_(), lengths, "token"), TeacherTargets(probs, valid, sources, ids)


def slowly(logits: Tensor, ids: Tensor, probs: Tensor, temperature: float) -> float:
    """KL of one position: both sides softened, the teacher over its top-k alone."""
    softened = [share ** (1 / temperature) for share in probs.tolist()]
    own = [math.exp(value / temperature) for value in logits.tolist()]
    total = 0.0
    for each, share in zip(ids.tolist(), softened):
        total += share / sum(softened) * math.log(share / sum(softened) * sum(own) / own[each])
    return total * temperature**2


def positions(targets: TeacherTargets) -> list[list[int]]:
    return [valid.nonzero()[:, 0].tolist() for valid in targets.valid]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("padding", [0, 2])
def test_it_sums_over_what_the_teacher_says(temperature: float, padding: int) -> None:
    tap, targets = make_batch(padding=padding)
    assert targets.ids is not None
    result = make_row(temperature=temperature)(tap, targets)
    losses = [
        slowly(tap.values[b, n], targets.ids[b, n], targets.vectors[b, n], temperature)
        for b, places in enumerate(positions(targets))
        for n in places
    ]
    assert (result.count, result.normaliser, len(losses)) == (10, "tokens", 10)
    assert result.total.item() == pytest.approx(sum(losses), rel=1e-5)
    output = sum(
        float(targets.vectors[b, n].sum()) for b, places in enumerate(positions(targets)) for n in places
    )
    mass, spoken = result.metrics["mass"], result.metrics["spoken"]
    assert (float(mass.sum), mass.count) == (pytest.approx(output), 10)
    assert (int(spoken.sum), spoken.count) == (10, sum(LENGTHS))


def test_a_posterior_at_one_serves_every_temperature() -> None:
    tap, targets = make_batch(VOCABULARY)
    assert targets.ids is not None
    own = torch.zeros_like(targets.vectors).scatter(-1, targets.ids, targets.vectors)[targets.valid]
    logits = tap.values[targets.valid]
    expected = F.kl_div((logits / 4).log_softmax(-1), (own.log() / 4).softmax(-1), reduction="sum") * 16
    torch.testing.assert_close(make_row(temperature=4.0)(tap, targets).total, expected)


def test_means_of_utterances() -> None:
    tap, targets = make_batch()
    assert targets.ids is not None
    result = make_row(average="utterance")(tap, targets)
    means = [
        sum(slowly(tap.values[b, n], targets.ids[b, n], targets.vectors[b, n], 1.0) for n in places)
        / len(places)
        for b, places in enumerate(positions(targets))
        if places
    ]
    assert (result.count, result.normaliser) == (3, "utterances")
    assert result.total.item() == pytest.approx(sum(means), rel=1e-5)


def test_gradient_reaches_what_is_predicted_alone() -> None:
    tap, targets = make_batch(padding=1)
    make_row()(tap, targets).total.backward()
    assert tap.values.grad is not None
    assert tap.values.grad.isfinite().all()
    assert torch.equal(tap.values.grad.abs().sum(-1) > 0, targets.valid)


def test_it_trains_nothing_of_its_own_and_ignores_autocast() -> None:
    row = make_row()
    assert list(row.parameters()) == []
    tap, targets = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert row(tap, targets).total == row(tap, targets).total.float()
        assert row(tap, targets).total.dtype == torch.float32


def test_nothing_predicted_is_nothing_lost() -> None:
    tap, targets = make_batch()
    tap = replace(tap, values=tap.values.detach().nan_to_num().requires_grad_())
    quiet = make_row()(tap, replace(targets, valid=torch.zeros_like(targets.valid)))
    quiet.total.backward()
    assert (quiet.total.item(), quiet.count) == (0.0, 0)
    # A process without utterances must log what the others log.
    empty = make_row()(Tap(tap.values[:1, :0], torch.zeros(1, dtype=torch.int64), "token"), empty_targets(1, K))
    assert empty.total.item() == 0.0
    assert empty.metrics.keys() == quiet.metrics.keys() == {"mass", "spoken"}
    assert (empty.metrics["spoken"].sum, empty.metrics["spoken"].count) == (0, 0)


def test_vectors_are_no_probabilities() -> None:
    tap, targets = make_batch()
    with pytest.raises(ValueError, match="are vectors, not probabilities"):
        make_row()(tap, replace(targets, ids=None))


def test_with_a_row_of_vectors() -> None:
    rows = [
        RowConfig(tap="tokens", teacher="lm", loss="soft_label", weight=0.5),
        RowConfig(tap="tokens", teacher="bert", loss="regression", weight=2.0),
    ]
    objective = Objective(rows, {"tokens": VOCABULARY}, {"lm": K, "bert": 3})
    tap, targets = make_batch()
    vectors = replace(targets, vectors=torch.ones(*targets.valid.shape, 3), ids=None)
    result = objective({"tokens": tap}, {("lm", "token"): targets, ("bert", "token"): vectors})
    single = [row(tap, given)
              for row, given in zip(objective.rows, (targets, vectors))]  # fmt: skip
    torch.testing.assert_close(result.token_sum, 0.5 * single[0].total + 2 * single[1].total)
    assert {
        "tokens.soft_label",
        "tokens.soft_label.mass",
        "tokens.soft_label.spoken",
    } <= result.metrics.keys()
    assert sum(each.numel() for each in objective.parameters()) == VOCABULARY * 3 + 3
