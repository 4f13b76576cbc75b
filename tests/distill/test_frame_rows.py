"""Rows on frames against sums written out frame by frame, by plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import RowConfig
from retort.distill import Objective, Row
from retort.distill.symbols import FrameClasses, frame_classes, translated
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets, empty_targets

SPECIAL = ["<blank>", "<pad>", "<eos>", "<unk>"]
SENONES = ["S0", "S1", "S2", "S3", "S4"]
SYMBOLS = [*SPECIAL, "S2", "S4", "S1"]
"""Of a teacher that has never met S3, and knows nothing of S0, which is silence."""
OUTPUT_OF = {4: 2, 5: 4, 6: 1}
LENGTHS, DIM, K = [5, 3, 0], 6, 3


def row(**changed: Any) -> RowConfig:
    return RowConfig(**({"tap": "senones", "teacher": "lm", "loss": "soft_label"} | changed))


def make_batch(dim: int = len(SENONES), padding: int = 0) -> tuple[Tap, TeacherTargets]:
    """Silences at the start, in the middle and at the end; rubbish where nothing is spoken."""
    draw = torch.Generator().manual_seed(1)
    size = max(LENGTHS)
    valid = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0] * 5]).bool()
    posterior = torch.randn(3, size, len(SYMBOLS), generator=draw).softmax(-1).topk(K)
    probs, ids = posterior.values.clone(), posterior.indices
    probs[~valid] = torch.nan
    values = torch.randn(3, size + padding, dim, generator=draw)
    lengths = torch.tensor(LENGTHS)
    padded = torch.arange(size + padding) >= lengths[:, None]
    hard = torch.rand(3, size + padding, generator=draw).masked_fill(padded, 0.0)
    values[padded] = torch.nan
    labels = torch.tensor(
        [[-1, 4, 4, -1, -1], [5, 6, -1, -1, -1], [-1] * 5]
    )  # the third of the second: unknown
    sources = torch.zeros(3, size, 2, dtype=torch.int64)
    tap = Tap(values.requires_grad_(), lengths, "frame", hard)
    return tap, TeacherTargets(probs, valid, sources, ids, labels)


def places(targets: TeacherTargets) -> list[tuple[int, int]]:
    return [(b, t) for b, t in targets.valid.nonzero().tolist()]


def log_softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    norm = math.log(sum(math.exp(each / temperature) for each in logits))
    return [each / temperature - norm for each in logits]


def target(
    targets: TeacherTargets, b: int, t: int, outputs: dict[int, int] | None, temperature: float, renormalise: bool
) -> dict[int, float]:
    """The teacher's distribution over outputs at one frame."""
    assert targets.ids is not None
    named = {
        symbol if outputs is None else outputs.get(symbol): share
        for symbol, share in zip(targets.ids[b, t].tolist(), targets.vectors[b, t].tolist())
    }
    kept = {output: share for output, share in named.items() if output is not None}
    softened = {output: share ** (1 / temperature) for output, share in kept.items()}
    total = sum(softened.values())
    whole = 1.0 if renormalise else sum(kept.values())
    return {output: whole * share / total for output, share in softened.items()} if total else {}


def make_objective(config: RowConfig, dim: int) -> Objective:
    torch.manual_seed(0)
    dims = {"senones": len(SENONES), "frames.2": dim}
    units = {"senones": "frame", "frames.2": "frame"}
    return Objective([config], dims, {"lm": K}, units, outputs={"senones": SENONES}, symbols={"lm": SYMBOLS})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("tap_name", ["senones", "frames.2"])
@pytest.mark.parametrize("padding", [0, 2])
def test_soft_labels_of_frames(temperature: float, renormalise: bool, tap_name: str, padding: int) -> None:
    own = tap_name == "senones"
    objective = make_objective(
        row(tap=tap_name, temperature=temperature, renormalise=renormalise, weight=0.7), DIM
    )
    tap, targets = make_batch(len(SENONES) if own else DIM, padding)
    (layer,) = objective.rows
    assert isinstance(layer, Row)
    expected = 0.0
    for b, t in places(targets):
        logits = tap.values[b, t].tolist() if own else layer.projection(tap.values[b, t]).tolist()
        log_probs = log_softmax(logits, temperature)
        recognised = target(targets, b, t, OUTPUT_OF if own else None, temperature, renormalise)
        expected += temperature**2 * sum(q * (math.log(q) - log_probs[o]) for o, q in recognised.items())
    result = objective({tap_name: tap}, {("lm", "frame"): targets})
    assert result.token_sum.item() == pytest.approx(0.7 * expected, rel=1e-4)
    assert result.metrics[f"{tap_name}.soft_label"].count == 5
    spoken = result.metrics[f"{tap_name}.soft_label.spoken"]
    assert (int(spoken.sum), spoken.count) == (5, 8)
    sizes = [tuple(each.shape) for each in objective.parameters()]
    assert sizes == ([] if own else [(len(SYMBOLS), DIM), (len(SYMBOLS),)])
    assert not {name for name in objective.state_dict() if "lookup" in name}
    result.token_sum.backward()
    assert tap.values.grad is not None
    assert tap.values.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_interpolation_frame_by_frame(temperature: float, renormalise: bool, step: int) -> None:
    config = row(interpolate=0.4, temperature=temperature, renormalise=renormalise, warmup_steps=2)
    share = 0.4 * min(1.0, step / 2)
    tap, targets = make_batch()
    assert tap.hard is not None
    expected = 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            recognised = target(targets, b, t, OUTPUT_OF, temperature, renormalise) if targets.valid[b, t] else {}
            log_probs = log_softmax(tap.values[b, t].tolist())
            soft = -sum(q * log_probs[output] for output, q in recognised.items())
            taken = share * sum(recognised.values())
            expected += (1 - taken) * float(tap.hard[b, t]) + share * soft
    result = make_objective(config, DIM)({"senones": tap}, {("lm", "frame"): targets}, step=step)
    assert tap.hard.sum().item() + result.token_sum.item() == pytest.approx(expected, rel=1e-5)
    # What is logged is the cross-entropy itself.
    assert result.metrics["senones.soft_label"].sum > 0


def test_interpolation_takes_the_hard_labels_gradient_where_it_takes_its_place() -> None:
    tap, targets = make_batch()
    hard = torch.rand(3, 5, requires_grad=True)
    values = tap.values.detach().nan_to_num().requires_grad_()
    result = make_objective(row(interpolate=1.0), DIM)(
        {"senones": replace(tap, values=values, hard=hard)}, {("lm", "frame"): targets}
    )
    (hard.sum() + result.token_sum).backward()
    assert hard.grad is not None
    recognised = torch.tensor(
        [
            [bool(targets.valid[b, t] and target(targets, b, t, OUTPUT_OF, 1.0, True)) for t in range(5)]
            for b in range(3)
        ]
    )
    assert recognised.any()
    torch.testing.assert_close(hard.grad, (~recognised).float())


def test_interpolated_with_the_labels_own_distribution_nothing_changes() -> None:
    """A teacher that is sure of each hard label: whatever the share, the loss is the hard loss."""
    logits = torch.randn(1, 4, 5, dtype=torch.float32)
    labels = torch.tensor([[2, 4, 1, 2]])
    hard = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none")[None]
    symbols = torch.tensor([[4, 5, 6, 4]])
    targets = TeacherTargets(
        torch.ones(1, 4, 1),
        torch.ones(1, 4, dtype=torch.bool),
        torch.zeros(1, 4, 2, dtype=torch.int64),
        symbols[..., None],
    )
    result = make_objective(row(interpolate=0.3), DIM)(
        {"senones": Tap(logits, torch.tensor([4]), "frame", hard)}, {("lm", "frame"): targets}
    )
    assert result.token_sum.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("tap_name", ["senones", "frames.2"])
def test_hard_labels_are_cross_entropy_with_the_unit_itself(tap_name: str) -> None:
    own = tap_name == "senones"
    objective = make_objective(row(tap=tap_name, loss="hard_label"), DIM)
    tap, targets = make_batch(len(SENONES) if own else DIM)
    (layer,) = objective.rows
    assert isinstance(layer, Row)
    assert targets.labels is not None
    expected, right = 0.0, 0
    for b, t in places(targets):
        symbol = int(targets.labels[b, t])
        if symbol < 0:
            continue
        logits = tap.values[b, t].tolist() if own else layer.projection(tap.values[b, t]).tolist()
        wanted = OUTPUT_OF[symbol] if own else symbol
        expected -= log_softmax(logits)[wanted]
        right += max(range(len(logits)), key=logits.__getitem__) == wanted
    result = objective({tap_name: tap}, {("lm", "frame"): targets})
    assert result.token_sum.item() == pytest.approx(expected, rel=1e-5)
    assert int(result.metrics[f"{tap_name}.hard_label.correct"].sum) == right
    with pytest.raises(ValueError, match="no labels of their positions"):
        objective({tap_name: tap}, {("lm", "frame"): replace(targets, labels=None)})


@pytest.mark.parametrize("loss", ["soft_label", "hard_label"])
@pytest.mark.parametrize("tap_name", ["senones", "frames.2"])
def test_a_process_without_utterances_logs_what_the_others_do(loss: str, tap_name: str) -> None:
    own = tap_name == "senones"
    objective = make_objective(
        row(tap=tap_name, loss=loss, interpolate=0.5 * (own and loss == "soft_label")), DIM
    )
    tap, targets = make_batch(len(SENONES) if own else DIM)
    full = objective({tap_name: tap}, {("lm", "frame"): targets})
    nothing = Tap(torch.zeros(1, 3, tap.values.shape[-1]), torch.tensor([0]), "frame", torch.zeros(1, 3))
    empty = objective({tap_name: nothing}, {("lm", "frame"): empty_targets(1, K)})
    assert empty.token_sum.item() == 0.0
    assert empty.metrics.keys() == full.metrics.keys()
    if not own:
        empty.token_sum.backward()
        assert all(each.grad is not None and not each.grad.any() for each in objective.parameters())


def test_vectors_of_frames_are_compared_as_others_are() -> None:
    objective = make_objective(row(tap="frames.2", loss="regression"), DIM)
    tap, targets = make_batch(DIM)
    vectors = replace(targets, ids=None)
    (layer,) = objective.rows
    assert isinstance(layer, Row)
    expected = sum(
        (layer.projection(tap.values[b, t]) - vectors.vectors[b, t]).square().sum().item()
        for b, t in places(targets)
    )
    assert objective({"frames.2": tap}, {("lm", "frame"): vectors}).token_sum.item() == pytest.approx(
        expected
    )


def test_a_signal_after_the_last_frame_is_an_error() -> None:
    tap, targets = make_batch()
    valid = targets.valid.clone()
    valid[1, 3] = True
    with pytest.raises(ValueError, match="utterance 1 of the batch has 3 positions"):
        make_objective(row(), DIM)({"senones": tap}, {("lm", "frame"): replace(targets, valid=valid)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tap": "frames.2", "interpolate": 0.5}, "not an output with hard labels"),
        ({"tap": "acoustic", "loss": "hard_label"}, "whose positions are not frames"),
        ({"teacher": "phones"}, "none of the symbols of teacher 'phones' is an output"),
    ],
)
def test_rows_that_cannot_be(changed: dict[str, Any], message: str) -> None:
    dims = {"senones": 5, "frames.2": DIM, "acoustic": 4}
    with pytest.raises(UserError, match=message):
        Objective(
            [row(**changed)], dims, {"lm": K, "phones": K}, {"senones": "frame", "frames.2": "frame"},
            outputs={"senones": SENONES}, symbols={"lm": SYMBOLS, "phones": [*SPECIAL, "AH"]},
        )  # fmt: skip


def test_symbols_must_be_given() -> None:
    with pytest.raises(ValueError, match="symbols of teacher lm are missing"):
        Objective([row()], {"senones": 5}, {"lm": K}, {"senones": "frame"}, outputs={"senones": SENONES})


def test_symbols_are_outputs_by_name() -> None:
    classes = frame_classes("senones", "lm", {"senones": SENONES}, {"lm": SYMBOLS})
    assert isinstance(classes, FrameClasses)
    assert classes.lookup is not None
    assert classes.lookup.tolist() == [-1, -1, -1, -1, 2, 4, 1]
    ids, probs = translated(
        classes.lookup, torch.tensor([[6, 2], [4, 3]]), torch.tensor([[0.5, 0.4], [0.3, 0.2]])
    )
    assert ids.tolist() == [[1, 0], [2, 0]]
    torch.testing.assert_close(probs, torch.tensor([[0.5, 0.0], [0.3, 0.0]]))


def test_gradients_in_double_precision() -> None:
    tap, targets = make_batch()
    targets = replace(targets, vectors=targets.vectors.nan_to_num().double())
    objective = make_objective(row(interpolate=0.4), DIM)
    assert tap.hard is not None

    def total(values: Tensor) -> Tensor:
        hard = values.square().sum(-1)
        given = Tap(values, tap.lengths, "frame", hard)
        result: Tensor = objective({"senones": given}, {("lm", "frame"): targets}).token_sum
        return result

    values = tap.values.detach().nan_to_num()
    assert torch.autograd.gradcheck(total, values.double().requires_grad_())
