from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from retort.nn.frontend import FramesConfig
from retort.nn.tdnnf import TdnnfConfig
from retort.students.factory import build_student
from retort.students.hybrid import HybridStudent, HybridStudentConfig
from retort.students.student import StudentOutput

BINS, SENONES = 6, 5
CONFIG = HybridStudentConfig(
    frontend=FramesConfig(stride=3),
    encoder=TdnnfConfig(layers=2, dim=8, bottleneck=4, dropout=0.0, pool_after=[]),
    label_smoothing=0.0,
)
LENGTHS = torch.tensor([20, 31, 0])
LABELS = torch.tensor(
    [[0, 1, 1, 2, 4, 4, 0, -1, -1, -1, -1], [3, 3, -1, 1, 0, 2, 2, 2, 4, 1, 0], [-1] * 11]
)  # of the encoder's 7, 11 and 0 frames


def make_student(**changed: object) -> HybridStudent:
    torch.manual_seed(0)
    student = build_student(replace(CONFIG, **changed), SENONES, BINS)  # type: ignore[arg-type]
    assert isinstance(student, HybridStudent)
    return student.eval()


def make_features() -> Tensor:
    return torch.randn(3, 40, BINS, generator=torch.Generator().manual_seed(1))


def slow_losses(student: HybridStudent) -> list[list[float]]:
    """Of every frame, one utterance at a time; smoothing goes to the others in equal shares."""
    smoothing, result = student.config.label_smoothing, []
    for row, length in enumerate(LENGTHS.tolist()):
        hidden, _ = student.encoder(make_features()[row : row + 1, :length], torch.tensor([length]))
        losses = []
        for place, senone in enumerate(LABELS[row].tolist()):
            if senone < 0:
                losses.append(0.0)
                continue
            logits = (student.output.weight @ hidden[0, place] + student.output.bias).tolist()
            norm = math.log(sum(math.exp(each) for each in logits))
            share = [
                1 - smoothing if each == senone else smoothing / (SENONES - 1) for each in range(SENONES)
            ]
            losses.append(sum(part * (norm - each) for part, each in zip(share, logits)))
        result.append(losses)
    return result


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("padding", [-1, 0, 6])
def test_the_loss_is_a_sum_over_labelled_frames(smoothing: float, padding: int) -> None:
    student = make_student(label_smoothing=smoothing, ce_weight=0.5)
    labels = torch.nn.functional.pad(LABELS, (0, max(padding, 0)), value=-1)
    # Padding of the features may be more or less than that of the labels.
    features = make_features()[:, :31] if padding < 0 else make_features()
    output = student(features, LENGTHS, labels)
    expected = slow_losses(student)
    assert output.losses["ce"].item() == pytest.approx(sum(map(sum, expected)), rel=1e-5)
    tap = output.taps["senones"]
    assert tap.hard is not None
    assert tap.hard.shape == tap.values.shape[:2]
    torch.testing.assert_close(tap.hard[:, :11], 0.5 * torch.tensor(expected))
    assert tap.hard.sum().item() == pytest.approx(0.5 * output.losses["ce"].item())
    assert student.loss_weights == {"ce": 0.5}


def test_taps_are_what_they_are_announced_as() -> None:
    student = make_student()
    output: StudentOutput = student(make_features(), LENGTHS, LABELS)
    assert student.tap_dims == {"senones": SENONES, "frames.1": 8, "frames.2": 8, "encoder": 8}
    assert student.tap_units == dict.fromkeys(student.tap_dims, "frame")
    assert student.outputs == {"senones": ["S0", "S1", "S2", "S3", "S4"]}
    assert output.taps.keys() == student.tap_dims.keys()
    for name, tap in output.taps.items():
        assert tap.unit == student.tap_units[name]
        assert tap.values.shape[-1] == student.tap_dims[name]
        assert tap.lengths.tolist() == [7, 11, 0]
    hidden, _ = student.encoder(make_features(), LENGTHS)
    assert torch.equal(output.taps["frames.2"].values, hidden)
    logits = output.taps["senones"].values
    torch.testing.assert_close(logits[0, :7], student.output(output.taps["frames.2"].values[0, :7]))
    first = list(student.encoder.each_layer(make_features(), LENGTHS))[1][0]
    torch.testing.assert_close(output.taps["frames.1"].values, first)


def test_frames_before_a_pooling_have_another_rate_and_are_no_taps() -> None:
    encoder = replace(CONFIG.encoder, layers=4, pool_after=[2])
    assert [*make_student(encoder=encoder).tap_dims] == ["senones", "frames.2", "frames.3", "frames.4", "encoder"]


def test_frame_accuracy_and_what_is_counted() -> None:
    student = make_student()
    output = student(make_features(), LENGTHS, LABELS)
    best = output.taps["senones"].values.argmax(-1)[:, :11]
    expected = sum(
        int(best[row, place] == LABELS[row, place])
        for row in range(3)
        for place in range(11)
        if LABELS[row, place] >= 0
    )
    assert int(output.metrics["correct"]) == expected
    tokens = torch.zeros(3, 0, dtype=torch.int64)
    batch = SimpleNamespace(senones=LABELS, tokens=tokens, token_lengths=torch.zeros(3))
    assert student.positions(batch) == 17
    assert torch.equal(student.labels(batch)[0], LABELS)
    with pytest.raises(ValueError, match="no alignment"):
        student.positions(SimpleNamespace(senones=None, tokens=tokens, token_lengths=torch.zeros(3)))


@pytest.mark.parametrize(("row", "place"), [(0, 7), (1, 11), (2, 0)])
def test_a_label_where_there_is_no_frame_is_an_error(row: int, place: int) -> None:
    labels = torch.nn.functional.pad(LABELS, (0, 4), value=-1)
    labels[row, place] = 1
    with pytest.raises(ValueError, match="beyond the encoder output"):
        make_student()(make_features(), LENGTHS, labels)
    with pytest.raises(ValueError, match="beyond the encoder output"):
        make_student()(make_features()[:, :31], LENGTHS, labels)


def test_posteriors_are_the_same_alone_and_in_a_batch() -> None:
    student = make_student()
    features = make_features()
    with torch.no_grad():
        encoded = student.encode(features, LENGTHS)
        together = student.log_posteriors(encoded)
        for row, length in enumerate(LENGTHS.tolist()[:2]):
            own = student.encode(features[row : row + 1, :length], LENGTHS[row : row + 1])
            alone, count = student.log_posteriors(own), int(own.lengths[0])
            assert int(encoded.lengths[row]) == count == alone.shape[1]
            torch.testing.assert_close(together[row, :count], alone[0])
            torch.testing.assert_close(alone[0].exp().sum(-1), torch.ones(count))


def test_priors_are_part_of_the_model() -> None:
    student = make_student()
    priors = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    student.set_priors(priors)
    again = make_student()
    again.load_state_dict(student.state_dict())
    torch.testing.assert_close(again.log_priors.exp(), priors)
    for wrong in (torch.ones(4), torch.tensor([0.5, 0.0, 0.2, 0.2, 0.1])):
        with pytest.raises(ValueError, match="above 0"):
            student.set_priors(wrong)


def test_nothing_to_learn_is_no_loss_with_a_gradient_of_zero() -> None:
    student = make_student()
    none = torch.zeros(1, dtype=torch.int64)
    output = student(torch.zeros(1, 1, BINS), none, torch.zeros(1, 0, dtype=torch.int64))
    output.losses["ce"].backward()
    assert output.losses["ce"].item() == 0.0
    for parameter in student.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_gradient_of_the_loss() -> None:
    student = make_student(label_smoothing=0.1).double()
    features = make_features().double()[:2, :31].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values: student(values, LENGTHS[:2], LABELS[:2]).losses["ce"], features
    )
