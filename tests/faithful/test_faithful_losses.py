"""The losses of the recogniser and the total of the published run, recomputed slowly from a student's outputs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slow_formulas import contrastive, ctc, fire, project, smoothed_cross_entropy, squared_errors
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.losses.contrastive import draw_ids
from retort.distill.objective import Objective
from retort.nn.conformer import ConformerConfig
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.frontend import Conv2dConfig
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig
from retort.students.cross_entropy import smoothed_cross_entropies
from retort.students.factory import build_student
from retort.teachers.targets import TeacherTargets
from retort.training.batches import Batch
from retort.training.module import TrainingModule

BINS, VOCABULARY, TEACHER_DIM = 8, 7, 9
FRAMES, TOKENS = [27, 19, 23], [[4, 5, 2], [6, 2], [5, 5, 4, 2]]
"""Of a batch: feature frames, and ids with the end symbol (2)."""


class Outputs(NamedTuple):
    """What the slow formulas read of one utterance, without padding, float64."""

    hidden: np.ndarray
    alphas: np.ndarray
    ctc: np.ndarray
    acoustic: np.ndarray
    states: np.ndarray
    logits: np.ndarray


def build(faithful: bool = True, **changed: Any) -> CifStudent:
    torch.manual_seed(0)
    config = CifStudentConfig(
        faithful=faithful,
        frontend=Conv2dConfig(channels=3, layers=1),
        encoder=ConformerConfig(layers=2, dim=12, heads=2, feedforward=16, kernel=5, pool_after=[1]),
        cif=CifConfig(),
        decoder=AutoregressiveConfig(layers=1, dim=10, heads=2, feedforward=16),
    )
    return build_student(replace(config, **changed), VOCABULARY, BINS).eval()


def make_batch(frames: list[int], tokens: list[list[int]], seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(frames), max(frames), BINS, generator=generator)
    padded = torch.full((len(tokens), max(map(len, tokens))), 1)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = torch.tensor(ids)
    lengths = torch.tensor(frames)
    features = features.masked_fill((torch.arange(max(frames)) >= lengths[:, None])[..., None], 0.0)
    counts = torch.tensor([len(ids) for ids in tokens])
    names = [str(row) for row in range(len(frames))]
    return Batch(names, names, [], features, lengths, padded, counts, [])


@torch.no_grad()
def outputs_of(student: CifStudent, batch: Batch) -> list[Outputs]:
    encoded = student.encode(batch.features, batch.feature_lengths)
    alphas, frame_logits = student.weights(encoded.hidden, encoded.lengths), student.ctc(encoded.hidden)
    taps = student(batch.features, batch.feature_lengths, batch.tokens, batch.token_lengths).taps
    result = []
    for row, (frames, units) in enumerate(zip(encoded.lengths.tolist(), batch.token_lengths.tolist())):
        of_frames = (each[row, :frames] for each in (encoded.hidden, alphas, frame_logits))
        of_tokens = (taps[name].values[row, :units] for name in ("acoustic", "linguistic", "tokens"))
        result.append(Outputs(*(each.double().numpy() for each in (*of_frames, *of_tokens))))
    return result


def losses_of(student: CifStudent, batch: Batch) -> dict[str, float]:
    losses = student(batch.features, batch.feature_lengths, batch.tokens, batch.token_lengths).losses
    return {name: float(loss.detach()) for name, loss in losses.items()}


def cross_entropy(outputs: list[Outputs], tokens: list[list[int]], smoothing: float) -> float:
    return math.fsum(
        smoothed_cross_entropy(each.logits, ids, smoothing) for each, ids in zip(outputs, tokens)
    )


def quantity(outputs: list[Outputs], tokens: list[list[int]]) -> float:
    return math.fsum(abs(math.fsum(each.alphas) - len(ids)) for each, ids in zip(outputs, tokens))


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
def test_cross_entropy_with_the_published_smoothing(smoothing: float) -> None:
    student, batch = build(label_smoothing=smoothing), make_batch(FRAMES, TOKENS)
    slow = cross_entropy(outputs_of(student, batch), TOKENS, smoothing)
    assert losses_of(student, batch)["ce"] == pytest.approx(slow, rel=1e-5)


def test_the_published_smoothing_spares_the_label_torchs_does_not() -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([2, 4, 6, 5, 2])
    logits = logits + 5.0 * F.one_hot(targets, VOCABULARY)  # a student that is sure
    published = float(smoothed_cross_entropies(logits, targets, 0.1).sum())
    torchs = float(F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum"))
    assert published == pytest.approx(smoothed_cross_entropy(logits.double().numpy(), targets.tolist(), 0.1))
    # torch spreads e over all V labels: the same as spreading e (V - 1) / V over the other ones.
    assert abs(torchs - published) > 1e-2
    rescaled = 0.1 * VOCABULARY / (VOCABULARY - 1)
    again = F.cross_entropy(logits, targets, label_smoothing=rescaled, reduction="sum")
    assert published == pytest.approx(float(again), rel=1e-5)


def test_quantity_reads_the_unscaled_weights_and_counts_eos() -> None:
    student, batch = build(), make_batch(FRAMES, TOKENS)
    slow = quantity(outputs_of(student, batch), TOKENS)
    assert slow > 0.1
    assert losses_of(student, batch)["quantity"] == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("faithful", [True, False])
def test_ctc_is_the_sum_over_all_alignments_with_eos_as_a_label_only_under_faithful(faithful: bool) -> None:
    student, batch = build(faithful), make_batch(FRAMES, TOKENS)
    outputs = outputs_of(student, batch)
    assert [len(each.ctc) for each in outputs] == [7, 5, 6]
    labels = [ids if faithful else ids[:-1] for ids in TOKENS]
    slow = math.fsum(ctc(each.ctc, own) for each, own in zip(outputs, labels))
    assert losses_of(student, batch)["ctc"] == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("faithful", [True, False])
def test_labels_that_do_not_fit_are_infinite_under_faithful_and_left_out_by_default(faithful: bool) -> None:
    tokens = [[5, 5, 5, 5, 2], [6, 2]]
    student, batch = build(faithful), make_batch([19, 19], tokens)
    outputs = outputs_of(student, batch)
    labels = [ids if faithful else ids[:-1] for ids in tokens]
    slow = [ctc(each.ctc, own) for each, own in zip(outputs, labels)]
    assert slow[0] == math.inf  # four equal labels need seven frames, here are five
    assert losses_of(student, batch)["ctc"] == pytest.approx(math.inf if faithful else slow[1], rel=1e-5)


def test_every_target_has_a_fired_vector_here_where_the_published_one_cuts_the_targets() -> None:
    """Four frames for six tokens: the published pass fires at most four, and reads as many targets."""
    student, batch = build(), make_batch([15], [[4, 5, 6, 4, 5, 2]])
    outputs = outputs_of(student, batch)[0]
    assert len(outputs.hidden) == 4
    assert len(fire(outputs.hidden, outputs.alphas, 4, target=6).tokens) <= 4
    assert len(outputs.acoustic) == len(outputs.logits) == 6
    slow = smoothed_cross_entropy(outputs.logits, [4, 5, 6, 4, 5, 2], 0.1)
    assert losses_of(student, batch)["ce"] == pytest.approx(slow, rel=1e-5)


def test_targets_scale_the_weights_in_evaluation_too_and_free_firing_never() -> None:
    student, batch = build(), make_batch(FRAMES, TOKENS)
    encoded = student.encode(batch.features, batch.feature_lengths)
    assert not student.training  # where the published code would not scale
    assert student.fire(encoded, batch.token_lengths).lengths.tolist() == batch.token_lengths.tolist()
    free = student.fire(encoded)
    for row, each in enumerate(outputs_of(student, batch)):
        virtual = np.append(each.hidden, np.zeros((1, 12)), 0), np.append(each.alphas, 0.0)
        assert int(free.lengths[row]) == len(fire(*virtual, len(each.alphas), tail=0.5).tokens)


def make_targets(counts: Tensor) -> TeacherTargets:
    longest = int(counts.max())
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(len(counts), longest, TEACHER_DIM, generator=generator)
    valid = torch.arange(longest) < counts[:, None]
    place = torch.arange(valid.numel()).view(valid.shape)
    return TeacherTargets(vectors, valid, torch.stack((place, place + 1), -1) * valid[..., None])


def test_the_total_of_the_published_run() -> None:
    """CE + quantity + 0.5 CTC + ACD + 0.01 LRD over the number of tokens, from features to the last sum."""
    student, batch = build(), make_batch(FRAMES, TOKENS, seed=0)
    rows = [
        RowConfig("acoustic", "bert", "contrastive", 1.0, temperature=0.02, negatives=700),
        RowConfig("linguistic", "bert", "regression", 0.01, reduce="sum"),
    ]
    objective = Objective(rows, student.tap_dims, {"bert": TEACHER_DIM})
    signal = make_targets(batch.token_lengths)
    torch.manual_seed(5)
    output = TrainingModule(student, objective).eval()(batch, {("bert", "token"): signal}, 0)
    tokens = sum(map(len, TOKENS))
    torch.manual_seed(5)
    drawn = [row.nonzero()[:, 0].tolist() for row in draw_ids(tokens, 700)]

    outputs = outputs_of(student, batch)
    for each, ids in zip(outputs, TOKENS):
        sums = each.alphas.cumsum()[:-1] * len(ids) / each.alphas.sum()
        assert (sums % 1.0 < 0.985).all()  # in [0.99, 1) the published tolerance would fire before ours
        slow = fire(each.hidden, each.alphas, len(each.alphas), target=len(ids))
        np.testing.assert_allclose(each.acoustic, slow.tokens, atol=1e-5)
    teacher = np.concatenate([each[: len(ids)] for each, ids in zip(signal.vectors.double(), TOKENS)])
    projected = []
    for index, name in enumerate(("acoustic", "states")):
        projection: Any = objective.get_submodule(f"rows.{index}.projection")
        taps = np.concatenate([getattr(each, name) for each in outputs])
        weights = projection.weight.detach().double().numpy(), projection.bias.detach().double().numpy()
        projected.append(project(taps, *weights))
    total = (
        cross_entropy(outputs, TOKENS, 0.1)
        + quantity(outputs, TOKENS)
        + 0.5 * math.fsum(ctc(each.ctc, ids) for each, ids in zip(outputs, TOKENS))
        + math.fsum(contrastive(projected[0], teacher, drawn, 0.02))
        + 0.01 * math.fsum(squared_errors(projected[1], teacher))
    )
    assert float(output.token_sum.detach()) / tokens == pytest.approx(total / tokens, rel=1e-5)
    assert float(output.utterance_sum) == 0.0
    assert student.loss_weights == {"ce": 1.0, "ctc": 0.5, "quantity": 1.0, "alignment": 0.0}
    assert all(tally.count == tokens for tally in output.tallies.values())


def test_a_teacher_that_reads_less_never_shortens_the_cross_entropy() -> None:
    student, batch = build(), make_batch(FRAMES, TOKENS)
    row = RowConfig("acoustic", "bert", "regression")
    module = TrainingModule(student, Objective([row], student.tap_dims, {"bert": TEACHER_DIM})).eval()
    signal = make_targets(batch.token_lengths)
    silent = replace(signal, valid=torch.zeros_like(signal.valid))
    tallies = module(batch, {("bert", "token"): silent}, 0).tallies
    assert tallies["acoustic.regression"].count == 0
    slow = cross_entropy(outputs_of(student, batch), TOKENS, 0.1)
    assert float(tallies["ce"].sum) == pytest.approx(slow, rel=1e-5)
