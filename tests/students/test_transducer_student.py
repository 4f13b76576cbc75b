from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from utterances import BINS, VOCABULARY, Batch, assert_a_batch_is_its_utterances, batch, learn_by_heart

from retort.config.loading import load_recipe
from retort.config.schema import RowConfig
from retort.decoding.greedy import ctc_greedy
from retort.decoding.transducer import transducer_greedy
from retort.distill.objective import Objective
from retort.info.describe import describe
from retort.nn.ctc import label_frames
from retort.nn.transducer import lattice_cells, packed_arcs, token_frames, transducer_loss
from retort.students.ctc import ctc_log_probs
from retort.students.factory import build_student
from retort.students.transducer import TransducerStudent
from retort.teachers.targets import token_targets, utterance_targets
from retort.teachers.teacher import TeacherOutput
from retort.text.tokenizers import EOS, Piece
from retort.training.batches import empty_batch
from tiny_transducers import config

KINDS = ["stateless", "lstm"]


def build(predictor: str = "stateless", **options: float) -> TransducerStudent:
    torch.manual_seed(0)
    student = build_student(config(predictor, **options), VOCABULARY, BINS).eval()
    assert isinstance(student, TransducerStudent)
    return student


def dense_logits(student: TransducerStudent, given: Batch) -> tuple[Tensor, Tensor]:
    """Logits `(B, T, U + 1, V)` of all cells, padded ones as well, and the encoder's lengths."""
    encoded = student.encode(given.features, given.feature_lengths)
    projected = student.joiner.project_encoder(encoded.hidden)
    read = student.joiner.project_predictor(student.predictor(given.tokens[:, :-1], EOS))
    return student.joiner(projected[:, :, None], read[:, None])[1], encoded.lengths


@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_are_their_formulas(kind: str, monotonic: bool) -> None:
    student, given = build(kind, monotonic=monotonic), batch([60, 41], [5, 3])
    output = student(*given)
    logits, lengths = dense_logits(student, given)
    counts = given.token_lengths - 1
    expected = transducer_loss(
        logits, given.tokens[:, :-1], lengths, counts, reduction="sum", monotonic=monotonic
    )
    torch.testing.assert_close(output.losses["transducer"], expected)
    log_probs = student.ctc(student.encode(given.features, given.feature_lengths).hidden).log_softmax(-1)
    labels = torch.cat([row[: int(count)] for row, count in zip(given.tokens, counts)])
    assert EOS not in labels.tolist()
    ctc = F.ctc_loss(log_probs.transpose(0, 1), labels, lengths, counts, blank=0, reduction="sum")
    torch.testing.assert_close(output.losses["ctc"], ctc)
    assert student.loss_weights == {"transducer": 1.0, "ctc": 0.5}


@pytest.mark.parametrize(("monotonic", "head"), [(False, True), (False, False), (True, False)])
def test_taps_are_along_the_path_of_the_ctc_head_or_the_own(monotonic: bool, head: bool) -> None:
    student, given = build(monotonic=monotonic, ctc_weight=0.5 * head), batch([60, 41], [5, 3])
    output = student(*given)
    logits, lengths = dense_logits(student, given)
    counts, tokens = given.token_lengths - 1, given.tokens[:, :-1]
    cells = lattice_cells(lengths, counts, *logits.shape[1:3])
    arcs = packed_arcs(logits[cells], tokens, counts, cells)
    own = token_frames(arcs, lengths, counts, monotonic=monotonic)
    encoded = student.encode(given.features, given.feature_lengths)
    hidden, frames = encoded.hidden, own
    if head:
        frames, _ = label_frames(ctc_log_probs(student, encoded), lengths, tokens, counts)
        assert frames.tolist() != own.tolist()
    taps = output.taps
    for name in ("acoustic", "linguistic", "tokens"):
        assert taps[name].lengths.tolist() == [5, 3]
        present = taps[name].present
        assert present is not None
        assert present.tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]
        assert taps[name].hard is None
    torch.testing.assert_close(
        taps["tokens"].values[:, :-1], student.joiner.output(taps["linguistic"].values[:, :-1])
    )
    correct = 0
    for row, count in enumerate(counts.tolist()):
        for place, frame in enumerate(frames[row, :count].tolist()):
            torch.testing.assert_close(taps["acoustic"].values[row, place], hidden[row, frame])
            torch.testing.assert_close(taps["tokens"].values[row, place], logits[row, frame, place])
            projected = logits[row, int(own[row, place]), place]
            correct += int(projected.argmax()) == int(tokens[row, place])
        mean = hidden[row, : int(lengths[row])].mean(0)
        torch.testing.assert_close(taps["utterance"].values[row, 0], mean)
    assert int(output.metrics["correct"]) == correct


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batching_change_nothing(kind: str) -> None:
    assert_a_batch_is_its_utterances(build(kind), batch([40, 73, 60], [3, 6, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_garbage_in_the_padding_keeps_gradients_finite(kind: str) -> None:
    student = build(kind, dropout=0.3).train()
    given = batch([60, 24], [5, 3])
    output = student(*given.with_garbage())
    sum(output.losses.values(), torch.zeros(())).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_more_tokens_than_frames_are_no_trouble_but_for_ctc() -> None:
    student, given = build(), batch([16, 60], [9, 3])  # 16 feature frames are 4 encoder frames
    output = student(*given)
    rest = student(*(each[1:] for each in given))
    assert float(output.losses["transducer"].detach()) > float(rest.losses["transducer"].detach())
    torch.testing.assert_close(output.losses["ctc"], rest.losses["ctc"])
    present = output.taps["tokens"].present
    assert present is not None
    assert present.sum(1).tolist() == [0, 2]


def test_a_batch_without_utterances_adds_nothing_and_reaches_every_part() -> None:
    student = build().train()
    given = empty_batch(BINS, [])
    output = student(given.features, given.feature_lengths, given.tokens, given.token_lengths)
    assert student.positions(given) == 0
    total = sum(output.losses.values(), torch.zeros(()))
    total = total + sum(tap.values.sum() for tap in output.taps.values())
    assert all(float(loss.detach()) == 0.0 for loss in output.losses.values())
    total.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name


def test_without_the_weight_there_is_no_ctc_head() -> None:
    student = build(ctc_weight=0.0)
    assert not any(name.startswith("ctc") for name in student.state_dict())
    assert student(*batch([60], [4])).losses.keys() == student.loss_weights.keys() == {"transducer"}
    assert student.criterion == "cer"
    student.config.transducer.weight = 0.0
    assert student.criterion == "ctc_cer"


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_the_loss_in_float32(kind: str) -> None:
    if kind == "lstm" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no LSTM in bf16 for this processor")
    student, given = build(kind), batch([60, 41], [5, 3])
    exact = student(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = student(*given)
        encoded = student.encode(given.features, given.feature_lengths)
        with torch.no_grad():
            found = transducer_greedy(student, encoded)
    assert len(found) == 2
    for name, loss in output.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.losses[name], rtol=0.05, atol=0.1)
    assert output.taps["acoustic"].values.dtype == torch.float32


def test_rows_meet_teachers_without_the_end_of_the_sentence() -> None:
    """Of hidden states and of soft labels alike, whose signals have a position for EOS."""
    student, given = build(), batch([60, 41], [5, 3])
    generator = torch.Generator().manual_seed(4)
    counts = [4, 2]
    texts = ["abcd", "ef"]
    pieces = [[Piece(4, place, place + 1) for place in range(count)] for count in counts]
    spans = [[(place, place + 1) for place in range(count)] for count in counts]
    vectors = [torch.randn(count + 2, 7, generator=generator) for count in counts]
    readings = [TeacherOutput(*each) for each in zip(vectors, spans, texts)]
    soft = [
        TeacherOutput(
            torch.rand(count + 2, 2, generator=generator) / 2,
            own,
            text,
            torch.tensor([[4, 5]] * (count + 2)).int(),
        )
        for count, own, text in zip(counts, spans, texts)
    ]
    signals = {
        ("bert", "token"): token_targets(readings, texts, pieces),
        ("bert", "utterance"): utterance_targets(readings, texts),
        ("lm", "token"): token_targets(soft, texts, pieces),
    }
    assert all(each.valid.sum() == 8 for (_, unit), each in signals.items() if unit == "token")
    rows = [
        RowConfig(tap="acoustic", teacher="bert", loss="contrastive"),
        RowConfig(tap="linguistic", teacher="bert", loss="regression", reduce="mean"),
        RowConfig(tap="utterance", teacher="bert", loss="cosine"),
        RowConfig(tap="tokens", teacher="lm", loss="soft_label"),
    ]
    objective = Objective(rows, student.tap_dims, {"bert": 7, "lm": 2}, student.tap_units)
    output = student(*given)
    result = objective(output.taps, signals, given.tokens)  # type: ignore[arg-type]
    assert result.metrics["acoustic.contrastive"].count == 6
    assert result.metrics["utterance.cosine"].count == 2
    sum_spoken, count = result.metrics["tokens.soft_label.spoken"]
    assert (int(sum_spoken), count) == (6, 6)
    logits = output.taps["tokens"].values
    expected = 0.0
    for row, own in enumerate(soft):
        for place in range(counts[row]):
            probs = own.vectors[place + 1] / own.vectors[place + 1].sum()
            own_log_probs = logits[row, place].detach().log_softmax(-1)[[4, 5]]
            expected += float((probs * (probs.log() - own_log_probs)).sum())
    assert float(result.metrics["tokens.soft_label"].sum) == pytest.approx(expected, rel=1e-5)
    (result.token_sum + result.utterance_sum).backward()
    assert student.joiner.acoustic.weight.grad is not None
    wrong = {**signals, ("bert", "token"): token_targets(readings[::-1], texts[::-1], pieces[::-1])}
    with pytest.raises(ValueError, match="utterance 0 of the batch has 5 positions in the tap"):
        objective(output.taps, wrong, given.tokens)  # type: ignore[arg-type]


def test_sizes_of_the_recipe_are_near_the_cif_models() -> None:
    described = describe(load_recipe("speechocean762/cif +family/transducer"))
    cif = describe(load_recipe("speechocean762/cif"))
    assert described.parts["encoder"] == cif.parts["encoder"]
    assert described.parts["ctc"] == cif.parts["ctc"]
    assert described.shipped == pytest.approx(cif.shipped, rel=1e-3)
    assert any("stateless predictor, context 2, dim 640; joiner dim 192" in line for line in described.lines)
    soft = describe(load_recipe("speechocean762/cif +family/transducer +distill/bert_soft"))
    assert (soft.shipped, soft.training_only) == (described.shipped, 0)


@pytest.mark.parametrize(("kind", "monotonic"), [("stateless", True), ("lstm", False)])
def test_it_learns_four_utterances_by_heart(kind: str, monotonic: bool) -> None:
    torch.manual_seed(5)  # with some seeds the number of updates is near the limit, so that rounding decides
    student = build_student(config(kind, monotonic=monotonic), VOCABULARY, BINS)
    student.config.transducer.symbols = 1 if monotonic else 8
    learn_by_heart(student, batch([64, 90, 72, 110], [5, 8, 6, 9], seed=5), recalled)


def recalled(student: TransducerStudent, given: Batch) -> tuple[list[list[int]], list[list[int]]]:
    """What the transducer and what the CTC head say."""
    encoded = student.encode(given.features, given.feature_lengths)
    symbols = student.config.transducer.symbols
    recognised = [each.ids for each in transducer_greedy(student, encoded, symbols)]
    return recognised, ctc_greedy(student, encoded)
