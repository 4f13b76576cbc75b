"""What students whose output is tokens share, each of them with an encoder that pools after its first layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from utterances import BINS, VOCABULARY, batch

from retort.common.errors import UserError
from retort.config.kinds import STUDENTS
from retort.config.loading import load_recipe
from retort.config.schema import RowConfig
from retort.distill.objective import Objective
from retort.nn.predictor import TransducerConfig
from retort.students.factory import build_student
from retort.students.student import Student
from retort.students.tokens import TokenStudent, at_frames
from retort.teachers.targets import token_targets
from retort.teachers.teacher import TeacherOutput
from retort.text.tokenizers import Piece
from tiny_students import DECODER, ENCODER, FRONTEND, student_config

KINDS = [kind for kind in STUDENTS if kind not in ("hybrid", "whisper")]


def build(kind: str) -> Student:
    torch.manual_seed(0)
    config = student_config(
        kind,
        frontend=FRONTEND,
        encoder=replace(ENCODER, layers=3, dropout=0.0, attention_dropout=0.0, pool_after=[1]),
        decoder=DECODER,
        transducer=TransducerConfig(dim=10, joiner_dim=14),
    )
    return build_student(config, VOCABULARY, BINS).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_at_the_rate_of_the_output_is_a_tap(kind: str) -> None:
    student, given = build(kind), batch([60, 41], [5, 3])
    assert isinstance(student, TokenStudent)
    output = student(*given)
    encoded = student.encode(given.features, given.feature_lengths)
    layers = list(student.encoder.each_layer(given.features, given.feature_lengths))
    names = [f"frames.{number}" for number in (1, 2, 3)]
    assert [name for name in student.tap_dims if name.startswith("frames.")] == names
    for name, (hidden, lengths) in zip(names, layers[1:]):
        tap = output.taps[name]
        assert (tap.unit, tap.lengths.tolist(), tap.present) == ("frame", lengths.tolist(), None)
        torch.testing.assert_close(tap.values[1, : lengths[1]], hidden[1, : lengths[1]])
    assert torch.equal(output.taps["frames.3"].values, encoded.hidden)
    assert torch.equal(output.taps["encoder"].values, encoded.hidden)
    deeper = replace(student.config.encoder, pool_after=[1, 3])
    config = replace(student.config, encoder=deeper)
    frames = [name for name in build_student(config, VOCABULARY, BINS).tap_dims if name.startswith("frames.")]
    assert frames == ["frames.3"]


@pytest.mark.parametrize("pool", ["cif", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_trained_with_a_teacher_of_tokens_and_eos(kind: str, pool: str) -> None:
    student, given = build(kind), batch([60, 41], [5, 3])
    texts, counts = ["abcd", "ef"], [4, 2]
    pieces = [[Piece(4, place, place + 1) for place in range(count)] for count in counts]
    spans = [[(place, place + 1) for place in range(count)] for count in counts]
    draw = torch.Generator().manual_seed(4)
    vectors = [torch.randn(count + 2, 7, generator=draw) for count in counts]
    targets = token_targets([TeacherOutput(*each) for each in zip(vectors, spans, texts)], texts, pieces)
    rows = [RowConfig("frames.2", "bert", loss, pool=pool) for loss in ("cosine", "contrastive")]
    objective = Objective(rows, student.tap_dims, {"bert": 7}, student.tap_units)
    assert objective.needs == {("bert", "token")}
    result = objective(student(*given).taps, {("bert", "token"): targets}, given.tokens)
    assert result.metrics["frames.2.cosine"].count == result.metrics["frames.2.contrastive"].count == 8
    result.token_sum.backward()
    recognised = {name: each.grad for name, each in student.encoder.named_parameters()}
    assert all(grad is None for name, grad in recognised.items() if name.startswith("layers.2."))
    assert any(
        grad is not None and grad.any() for name, grad in recognised.items() if name.startswith("layers.1.")
    )


@pytest.mark.parametrize(
    "recipe",
    ["cif", "cif +family/ctc", "cif +family/attention", "cif +family/transducer", "cif +family/paraformer"],
)
def test_frames_that_nothing_pools_have_no_teacher(recipe: str) -> None:
    teacher = "teachers.other={model: x, dim: 8}"
    row = "distill=[{{tap: frames.6, teacher: other, loss: cosine{}}}]"
    with pytest.raises(UserError, match=r"no alignment of frames.*Set pool: cif or attention") as caught:
        load_recipe(f"speechocean762/{recipe}", [teacher, row.format("")])
    assert "\n" not in str(caught.value)
    assert load_recipe(f"speechocean762/{recipe}", [teacher, row.format(", pool: attention")]).distill[0].pool


def test_the_frames_of_tokens() -> None:
    values = torch.arange(24.0).view(2, 4, 3)
    found = at_frames(values, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(found, torch.stack([values[0, [3, 0]], values[1, [1, 1]]]))
