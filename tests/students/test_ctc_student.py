from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from utterances import BINS, VOCABULARY, Batch, assert_a_batch_is_its_utterances, batch, learn_by_heart

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import RowConfig
from retort.decoding.greedy import ctc_best_path, ctc_greedy
from retort.distill.row import Row
from retort.info.describe import describe
from retort.students.ctc import CtcStudent, CtcStudentConfig, ctc_log_probs
from retort.students.factory import build_student
from retort.students.student import Encoded, Tap
from retort.teachers.targets import token_targets
from retort.teachers.teacher import TeacherOutput
from retort.text.tokenizers import BLANK, EOS, CharacterTokenizer
from tiny_students import ENCODER, FRONTEND


def build(kind: str = "conformer") -> CtcStudent:
    torch.manual_seed(0)
    encoder = replace(ENCODER, kind=kind, layers=2, dropout=0.0, attention_dropout=0.0)
    config = CtcStudentConfig(frontend=FRONTEND, encoder=encoder, ctc_weight=1.0)
    student = build_student(config, VOCABULARY, BINS)
    assert isinstance(student, CtcStudent)
    return student.eval()


@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_a_batch_is_its_utterances(kind: str) -> None:
    student = build(kind)
    assert student.loss_weights == {"ctc": 1.0}
    assert_a_batch_is_its_utterances(student, batch([40, 73, 24, 120], [3, 6, 2, 9]))


def test_the_loss_is_ctc_without_eos() -> None:
    student, given = build(), batch([60, 60], [4, 3])
    encoded = student.encode(given.features, given.feature_lengths)
    labels = torch.cat([given.tokens[0, :3], given.tokens[1, :2]])
    log_probs = student.ctc(encoded.hidden).log_softmax(-1).transpose(0, 1)
    expected = F.ctc_loss(log_probs, labels, encoded.lengths, torch.tensor([3, 2]), blank=0, reduction="sum")
    torch.testing.assert_close(student(*given).losses["ctc"], expected)


def test_taps_stand_where_the_best_path_has_the_tokens() -> None:
    """All alignments of a short utterance tried."""
    student, given = build(), batch([9], [3])
    output = student(*given)
    encoded = student.encode(given.features, given.feature_lengths)
    logits = student.ctc(encoded.hidden)[0]
    log_probs, labels = logits.log_softmax(-1).detach(), given.tokens[0, :2].tolist()
    paths = [
        path
        for path in itertools.product({BLANK, *labels}, repeat=len(logits))
        if [label for label, _ in itertools.groupby(path) if label != BLANK] == labels
    ]
    best = max(paths, key=lambda path: sum(float(log_probs[t, label]) for t, label in enumerate(path)))
    for place, label in enumerate(labels):
        frame = max(
            (t for t, each in enumerate(best) if each == label), key=lambda t: float(log_probs[t, label])
        )
        torch.testing.assert_close(output.taps["tokens"].values[0, place], logits[frame])
        torch.testing.assert_close(output.taps["acoustic"].values[0, place], encoded.hidden[0, frame])
    torch.testing.assert_close(output.taps["utterance"].values[0, 0], encoded.hidden[0].mean(0))
    for name in ("tokens", "acoustic"):
        present = output.taps[name].present
        assert present is not None
        assert present.tolist() == [[True, True, False]]  # EOS has no frame
        assert output.taps[name].lengths.tolist() == [3]


def test_an_utterance_too_short_for_its_labels_has_nothing_and_costs_nothing() -> None:
    student, given = build(), batch([16, 60], [30, 3])
    output = student(*given)
    rest = student(*given.utterance(1))
    torch.testing.assert_close(output.losses["ctc"], rest.losses["ctc"])
    present = output.taps["tokens"].present
    assert present is not None
    assert not present[0].any()
    assert present[1].tolist() == [True, True] + [False] * 28
    output.losses["ctc"].backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in student.parameters())


def letters_signal(texts: list[str], soft: bool) -> tuple[object, CharacterTokenizer]:
    """What a teacher of letters says, of EOS too."""
    tokenizer = CharacterTokenizer(list("abcdefgh"))
    readings = []
    for index, text in enumerate(texts):
        generator = torch.Generator().manual_seed(index)
        vectors = torch.rand(len(text) + 2, 3, generator=generator)
        ids = torch.randint(3, tokenizer.size, (len(text) + 2, 1), generator=generator) if soft else None
        if ids is not None:
            ids = (ids + torch.arange(3)) % (tokenizer.size - 3) + 3
        spans = [(place, place + 1) for place in range(len(text))]
        readings.append(TeacherOutput(vectors, spans, text, ids))
    pieces = [tokenizer.pieces(text) for text in texts]
    return token_targets(readings, texts, pieces), tokenizer


@pytest.mark.parametrize("loss", ["soft_label", "regression", "contrastive"])
def test_rows_leave_out_eos_and_what_has_no_frame(loss: str) -> None:
    texts = ["abc", "fade", "hghghghgh"]
    targets, tokenizer = letters_signal(texts, loss == "soft_label")
    generator = torch.Generator().manual_seed(9)
    lengths = torch.tensor([len(text) + 1 for text in texts])
    present = torch.arange(12) < lengths[:, None] - 1
    present[2] = False
    values = torch.randn(3, 12, tokenizer.size, generator=generator, requires_grad=True)
    torch.manual_seed(1)
    row = Row(RowConfig("tokens", "bert", loss), tokenizer.size, 3)
    tokens = torch.full((3, 12), 1)
    for index, text in enumerate(texts):
        tokens[index, : len(text) + 1] = torch.tensor([*tokenizer.encode(text), EOS])
    result = row(Tap(values, lengths, "token", present=present), targets, tokens)  # type: ignore[arg-type]
    assert result.count == 7
    result.total.backward()
    assert values.grad is not None
    assert torch.equal(values.grad.abs().sum(-1) > 0, present)
    if loss == "soft_label":
        assert (float(result.metrics["spoken"].sum), result.metrics["spoken"].count) == (7.0, 7)
    with pytest.raises(
        ValueError, match="positions in the tap"
    ):  # still: tap and targets must be of one text
        row(Tap(values, lengths + 1, "token", present=present), targets, tokens)  # type: ignore[arg-type]


def test_the_gradient_of_a_tap_reaches_the_frames_of_its_tokens_alone() -> None:
    student, given = build(), batch([40], [4])
    frames: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        frames.append(output)

    student.ctc.register_forward_hook(keep)
    student(*given).taps["tokens"].values[0, :3].sum().backward()
    assert frames[0].grad is not None
    assert int((frames[0].grad.abs().sum(-1) > 0).sum()) == 3


def test_the_best_path_with_its_peaks() -> None:
    """`_` is blank: `_aa_a` says a twice, the first where it is surer."""
    student = build()
    path = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9], [0.1, 0.9]]
    log_probs = torch.full((1, 6, ENCODER.dim), -50.0)
    log_probs[0, :, [BLANK, 4]] = torch.tensor(path).log()
    with torch.no_grad():
        student.ctc.weight.copy_(torch.eye(VOCABULARY, ENCODER.dim))
        student.ctc.bias.fill_(0.0)
        student.ctc.bias[ENCODER.dim :] = -50.0
    encoded = Encoded(log_probs, torch.tensor([5]))  # the sixth frame is padding
    (found,) = ctc_best_path(student, encoded)
    assert found.ids == [4, 4]
    assert found.starts == [2.0, 4.0]
    assert found.ends == [3.0, 5.0]
    assert found.log_probs == pytest.approx(torch.tensor([0.8, 0.9]).log().tolist(), abs=1e-5)
    assert ctc_greedy(student, encoded) == [[4, 4]]
    assert ctc_log_probs(student, encoded)[0, 2, 4].exp().item() == pytest.approx(0.8, abs=1e-5)


def test_it_learns_two_utterances_by_heart() -> None:
    def recalled(student: CtcStudent, given: Batch) -> list[list[list[int]]]:
        return [ctc_greedy(student, student.encode(given.features, given.feature_lengths))]

    torch.manual_seed(3)
    learn_by_heart(build(), batch([40, 32], [5, 4], seed=5), recalled, rate=1e-2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student.faithful=true", "student.encoder.positions=relative"], "faithful"),
        (["student.ctc_weight=0"], "student.ctc_weight is 0"),
        (["student.decoder.init=bert"], "unknown key 'student.decoder' of kind ctc"),
    ],
)
def test_what_a_recipe_cannot_ask_for(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_recipe("speechocean762/cif +family/ctc", overrides)
    assert "\n" not in str(caught.value)


def test_ctc_has_no_hard_label_to_share_its_place() -> None:
    with pytest.raises(UserError, match="no label per position"):
        load_recipe(
            "speechocean762/cif +family/ctc +distill/bert_soft",
            ["distill.0.interpolate=0.3", "distill.0.weight=1.0"],
        )


@pytest.mark.parametrize(
    ("overlays", "parts"),
    [
        (["+family/ctc"], {"encoder", "ctc"}),
        (["+family/ctc", "+distill/bert_soft"], {"encoder", "ctc"}),
        (["+family/ctc", "+distill/pooled_attention"], {"encoder", "ctc"}),
        (["+family/ctc", "+distill/deng_cif"], {"encoder", "ctc"}),
        (["+family/attention"], {"encoder", "ctc", "decoder"}),
        (["+family/attention", "+distill/bert_soft"], {"encoder", "ctc", "decoder"}),
        (["+family/attention", "+distill/lrd"], {"encoder", "ctc", "decoder"}),
    ],
)
def test_packaged_families_have_the_encoder_of_cif(overlays: list[str], parts: set[str]) -> None:
    described = describe(load_recipe("speechocean762/cif", overlays))
    cif = describe(load_recipe("speechocean762/cif"))
    assert set(described.parts) == parts
    for part in ("encoder", "ctc"):
        assert described.parts[part] == cif.parts[part]
    assert len(described.lines) == len(cif.lines) + len(overlays) - 1
