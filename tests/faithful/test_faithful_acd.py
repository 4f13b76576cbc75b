"""Acoustic contrastive distillation next to its published formulation with gathered negatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from random_batches import tap_and_targets
from slow_formulas import contrastive, project
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.losses.contrastive import contrastive_loss, draw_ids
from retort.distill.objective import Objective
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets, token_targets
from retort.teachers.teacher import TeacherOutput
from retort.text.tokenizers import Piece

TAP_DIM, TEACHER_DIM = 6, 9
LENGTHS = [5, 3, 8]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def listed(drawn: Tensor) -> list[list[int]]:
    """The drawn ids of every anchor, as the published code has them: N lists of K."""
    return [row.nonzero()[:, 0].tolist() for row in drawn]


def vectors(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, size, TEACHER_DIM, generator=seeded(seed), dtype=torch.float64)
    return drawn[0], drawn[1]


def acd(**changed: Any) -> tuple[Objective, RowConfig]:
    """The row of the published run."""
    torch.manual_seed(0)
    row = RowConfig("acoustic", "bert", "contrastive", **changed)
    return Objective([row], {"acoustic": TAP_DIM}, {"bert": TEACHER_DIM}), row


def slow_losses(objective: Objective, tap: Tap, targets: TeacherTargets, drawn: Tensor) -> list[float]:
    """Every valid position's loss: flattened without pads, projected, against the drawn ids."""
    projection: Any = objective.get_submodule("rows.0.projection")
    weight, bias = (each.detach().double().numpy() for each in (projection.weight, projection.bias))
    student = np.concatenate([values[:length] for values, length in zip(tap.values.double(), LENGTHS)])
    teacher = np.concatenate([each[:length] for each, length in zip(targets.vectors.double(), LENGTHS)])
    return contrastive(project(student, weight, bias), teacher, listed(drawn), 0.02)


@pytest.mark.parametrize("size", [1, 2, 5, 30, 699, 700, 701, 955])
def test_k_without_replacement_or_four_fifths_of_a_small_batch(size: int) -> None:
    drawn = draw_ids(size, 700, generator=seeded(size))
    expected = 700 if size > 700 else int(0.8 * size)
    assert drawn.dtype == torch.bool  # a set: nothing twice
    assert drawn.sum(1).tolist() == [expected] * size


def test_four_fifths_in_integers_is_the_published_rounding() -> None:
    assert all(4 * size // 5 == int(size * 0.8) for size in range(1, 20_000))


@pytest.mark.parametrize(("size", "negatives"), [(12, 5), (12, 11), (12, 12), (12, 700), (40, 30)])
@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_the_matrix_form_is_the_gather_form_of_the_same_ids(
    size: int, negatives: int, temperature: float
) -> None:
    student, teacher = vectors(size, seed=size)
    drawn = draw_ids(size, negatives, generator=seeded(7))
    assert drawn.diagonal().any()  # an anchor drew itself: the overlap has something to remove
    slow = contrastive(student.numpy(), teacher.numpy(), listed(drawn), temperature)
    options: dict[str, Any] = {"temperature": temperature, "negatives": negatives, "reduction": "none"}
    fast = contrastive_loss(student, teacher, generator=seeded(7), **options)
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-9, atol=1e-12)


def test_the_row_sums_over_tokens_and_leaves_the_division_to_the_trainer() -> None:
    tap, targets = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective, _ = acd()
    torch.manual_seed(3)
    result = objective({"acoustic": tap}, {("bert", "token"): targets})
    torch.manual_seed(3)
    slow = slow_losses(objective, tap, targets, draw_ids(sum(LENGTHS), 700))
    np.testing.assert_allclose(float(result.token_sum.detach()), math.fsum(slow), rtol=1e-5)
    logged = result.metrics["acoustic.contrastive"]
    np.testing.assert_allclose(float(logged.sum) / logged.count, math.fsum(slow) / sum(LENGTHS), rtol=1e-5)
    assert float(result.utterance_sum) == 0.0


def test_the_posters_average_is_over_utterances_of_means_over_their_tokens() -> None:
    tap, targets = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective, _ = acd(average="utterance")
    torch.manual_seed(3)
    result = objective({"acoustic": tap}, {("bert", "token"): targets})
    torch.manual_seed(3)
    slow = slow_losses(objective, tap, targets, draw_ids(sum(LENGTHS), 700))
    means, start = [], 0
    for length in LENGTHS:
        means.append(math.fsum(slow[start : start + length]) / length)
        start += length
    np.testing.assert_allclose(float(result.utterance_sum.detach()), math.fsum(means), rtol=1e-5)
    assert float(result.token_sum) == 0.0
    assert abs(math.fsum(means) / len(LENGTHS) - math.fsum(slow) / sum(LENGTHS)) > 1e-3  # code and poster


def test_one_text_twice_in_a_batch_is_a_negative_of_itself_there_and_not_here() -> None:
    teacher = vectors(6)[1]
    teacher[3:] = teacher[:3]  # the same sentence, read by two
    student = teacher.clone()
    drawn = torch.ones(6, 6, dtype=torch.bool)
    published = contrastive(student.numpy(), teacher.numpy(), listed(drawn), 0.02)
    assert min(published) >= math.log(2) - 1e-9  # a perfect student cannot tell the copy from its own
    piece = torch.arange(6) % 3
    ours = contrastive_loss(
        student, teacher, negatives=5, sources=torch.stack((piece, piece + 1), 1), reduction="none"
    )
    assert float(ours.max()) < 1e-3


@pytest.mark.parametrize("same_token_negatives", [True, False])
def test_another_place_of_the_same_token_is_a_negative_unless_it_is_excluded(
    same_token_negatives: bool,
) -> None:
    tap, targets = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    objective, _ = acd(negatives=2**20, same_token_negatives=same_token_negatives)
    tokens = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    result = objective({"acoustic": tap}, {("bert", "token"): targets}, tokens)
    # One and the same token everywhere: nothing is left to tell it from.
    assert bool(result.token_sum > 0.0) == same_token_negatives
    assert RowConfig("", "", "").same_token_negatives  # the published choice is the default


def make_output(text: str, seed: int) -> TeacherOutput:
    spans = [(place, place + 1) for place in range(len(text))]
    return TeacherOutput(torch.randn(len(text) + 2, TEACHER_DIM, generator=seeded(seed)), spans, text)


def test_characters_meet_their_own_vectors_and_eos_meets_sep() -> None:
    texts = ["今天", "天气好"]
    readings = [make_output(text, seed) for seed, text in enumerate(texts)]
    pieces = [[Piece(5, place, place + 1) for place in range(len(text))] for text in texts]
    targets = token_targets(readings, texts, pieces)
    for row, (reading, text) in enumerate(zip(readings, texts)):
        length = len(text) + 1
        assert torch.equal(targets.vectors[row, :length], reading.vectors[1:])  # all but [CLS]
        assert targets.valid[row].tolist() == [place < length for place in range(4)]


def test_too_many_fires_meet_zero_vectors_there_and_an_error_here() -> None:
    tap, targets = tap_and_targets(LENGTHS, TAP_DIM, TEACHER_DIM)
    lengths = tap.lengths.clone()
    lengths[1] += 1
    objective, _ = acd()
    with pytest.raises(ValueError, match="utterance 1 of the batch has 4 positions in the tap"):
        objective({"acoustic": Tap(tap.values, lengths, "token")}, {("bert", "token"): targets})


def test_what_the_teacher_cut_off_is_left_out_and_never_shortens_the_rest() -> None:
    text = "今天天气好"
    whole = make_output(text, 0)
    cut = TeacherOutput(whole.vectors[[0, 1, 2, 6]], whole.spans[:2], text)  # its maximum length was 2
    pieces = [[Piece(5, place, place + 1) for place in range(len(text))]]
    targets = token_targets([cut], [text], pieces)
    assert targets.valid.tolist() == [[True, True, False, False, False, True]]
    objective, _ = acd()
    tap = Tap(torch.randn(1, 6, TAP_DIM, generator=seeded(1)), torch.tensor([6]), "token")
    logged = objective({"acoustic": tap}, {("bert", "token"): targets}).metrics["acoustic.contrastive"]
    assert logged.count == 3
