from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from utterances import BINS, VOCABULARY, Batch, assert_a_batch_is_its_utterances, batch, learn_by_heart

from retort.config.loading import load_recipe
from retort.decoding.greedy import ctc_greedy, greedy
from retort.info.describe import describe
from retort.nn.masks import valid_mask
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig, alignment_loss
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.text.tokenizers import EOS, PAD, UNKNOWN
from tiny_students import DECODER, ENCODER, FRONTEND, smoothed_cross_entropy


def config(dropout: float = 0.0, faithful: bool = False, kind: str = "conformer") -> CifStudentConfig:
    encoder = replace(
        ENCODER,
        kind=kind,
        layers=2,
        dim=24,
        feedforward=48,
        positions="relative",
        dropout=dropout,
        attention_dropout=dropout,
        pool_after=[1],
    )
    decoder = replace(DECODER, dropout=dropout, embedding_dropout=dropout)
    return CifStudentConfig(
        faithful=faithful,
        frontend=FRONTEND,
        encoder=encoder,
        cif=CifConfig(dropout=dropout),
        decoder=decoder,
    )


def build(**options: bool | str | float) -> CifStudent:
    torch.manual_seed(0)
    return build_student(config(**options), VOCABULARY, BINS).eval()  # type: ignore[arg-type]


def test_parameters_of_the_published_baseline() -> None:
    described = describe(load_recipe("aishell1/cif"))
    assert described.parts["encoder"] == 40_862_720
    assert described.parts["weights"] == 197_121
    assert described.parts["ctc"] == 1_088_138
    assert described.parts["decoder"] == 47_208_587 - 40_862_720 - 197_121 - 1_088_138
    assert sum(described.parts.values()) == described.shipped == 47_208_587
    assert described.training_only == 0


@pytest.mark.parametrize(
    ("name", "trained"),
    [("aishell1/acd", 47_405_963), ("aishell1/lrd", 47_405_963), ("aishell1/hkd", 47_603_339)],
)
def test_rows_add_a_projection_each_and_ship_nothing(name: str, trained: int) -> None:
    described = describe(load_recipe(name))
    assert described.shipped == 47_208_587
    assert described.shipped + described.training_only == trained


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothed_cross_entropy_is_torchs_with_the_mass_on_the_others(classes: int, smoothing: float) -> None:
    logits = torch.randn(9, classes, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(classes, (9,))
    loss = smoothed_cross_entropy(logits, targets, smoothing)
    even = smoothing * classes / (classes - 1)  # torch spreads its mass over all labels, the target too
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="sum", label_smoothing=even))

    share = smoothing / (classes - 1)
    nll = F.cross_entropy(logits, targets, reduction="none")
    written = (1 - smoothing - share) * nll + share * -F.log_softmax(logits, -1).sum(-1)
    torch.testing.assert_close(loss, written.sum())
    assert torch.autograd.gradcheck(lambda values: smoothed_cross_entropy(values, targets, smoothing), logits)


def test_smoothed_cross_entropy_of_nothing_is_zero() -> None:
    assert float(smoothed_cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 0.1)) == 0.0


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_losses_of_a_batch_are_the_sums_of_its_utterances(kind: str, faithful: bool) -> None:
    student = build(kind=kind, faithful=faithful)
    student.config.alignment_weight = 1.0
    assert student.loss_weights == {"ce": 1.0, "ctc": 0.5, "quantity": 1.0, "alignment": 1.0}
    assert_a_batch_is_its_utterances(student, batch([40, 73, 24, 120], [3, 6, 2, 9]))


def test_losses_are_their_formulas() -> None:
    student = build()
    given = batch([60, 41], [5, 3])
    output = student(*given)
    encoded = student.encode(given.features, given.feature_lengths)
    alphas = student.weights(encoded.hidden, encoded.lengths)
    quantity = (alphas[0].sum() - 5).abs() + (alphas[1].sum() - 3).abs()
    torch.testing.assert_close(output.losses["quantity"], quantity)

    logits = output.taps["tokens"].values
    mask = valid_mask(given.token_lengths, 5)
    ce = smoothed_cross_entropy(logits[mask], given.tokens[mask], student.config.label_smoothing)
    torch.testing.assert_close(output.losses["ce"], ce)
    assert int(output.metrics["correct"]) == int((logits.argmax(-1) == given.tokens)[mask].sum())
    torch.testing.assert_close(output.metrics["quantity_total"], alphas.sum())


def test_the_hard_loss_of_every_token_for_rows_that_take_its_place() -> None:
    student = build()
    student.config = replace(student.config, ce_weight=0.5)
    given = batch([60, 41], [5, 3])
    output = student(*given)
    hard = output.taps["tokens"].hard
    assert hard is not None
    assert hard.shape == (2, 5)
    logits = output.taps["tokens"].values
    for row, length in enumerate((5, 3)):
        for place in range(length):
            one = smoothed_cross_entropy(
                logits[row, place][None], given.tokens[row, place][None], student.config.label_smoothing
            )
            torch.testing.assert_close(hard[row, place], 0.5 * one)
        assert not hard[row, length:].any()
    torch.testing.assert_close(hard.sum(), 0.5 * output.losses["ce"])


def test_the_quantity_loss_pulls_the_weights_towards_the_number_of_tokens() -> None:
    student = build()
    given = batch([60, 60], [2, 12])  # about 7 fire at first: too many for one, too few for the other
    encoded = student.encode(given.features, given.feature_lengths)
    alphas = student.weights(encoded.hidden, encoded.lengths).detach()
    assert float(alphas[0].sum()) > 2
    assert float(alphas[1].sum()) < 12
    student.weights.zero_grad()
    student(*given).losses["quantity"].backward()
    slope = student.weights.linear.bias.grad
    assert slope is not None
    expected = (alphas[0] * (1 - alphas[0])).sum() - (alphas[1] * (1 - alphas[1])).sum()
    torch.testing.assert_close(slope[0], expected, atol=1e-4, rtol=1e-4)


def test_taps_have_units_lengths_and_their_own_values() -> None:
    student = build()
    given = batch([60, 41], [5, 3])
    taps = student(*given).taps
    assert {name: tap.values.shape[-1] for name, tap in taps.items()} == student.tap_dims
    for name in ("acoustic", "linguistic", "tokens"):
        assert taps[name].unit == "token"
        assert taps[name].values.shape[:2] == (2, 5)
        assert taps[name].lengths.tolist() == [5, 3]
    assert taps["utterance"].unit == "utterance"
    assert taps["utterance"].lengths.tolist() == [1, 1]
    for row, length in enumerate((5, 3)):
        mean = taps["acoustic"].values[row, :length].mean(0)
        torch.testing.assert_close(taps["utterance"].values[row, 0], mean)
    torch.testing.assert_close(taps["tokens"].values, student.decoder.vocabulary(taps["linguistic"].values))


@pytest.mark.parametrize("faithful", [False, True])
def test_eos_is_a_ctc_label_only_under_faithful(faithful: bool) -> None:
    student = build(faithful=faithful)
    given = batch([60, 60], [4, 3])
    encoded = student.encode(given.features, given.feature_lengths)
    log_probs = student.ctc(encoded.hidden).log_softmax(-1).transpose(0, 1)
    lengths = given.token_lengths if faithful else given.token_lengths - 1
    labels = torch.cat([given.tokens[row, : int(length)] for row, length in enumerate(lengths)])
    assert (EOS in labels.tolist()) == faithful
    expected = F.ctc_loss(log_probs, labels, encoded.lengths, lengths, blank=0, reduction="sum")
    torch.testing.assert_close(student(*given).losses["ctc"], expected)


def test_too_many_labels_for_ctc_are_finite_by_default_and_infinite_under_faithful() -> None:
    given = batch([16, 60], [9, 3])  # 16 feature frames are 4 encoder frames
    assert int(build().encoder.output_lengths(torch.tensor(16))) == 4
    with torch.no_grad():
        assert math.isinf(float(build(faithful=True)(*given).losses["ctc"]))

    student = build()
    output = student(*given)
    rest = student(given.features[1:], given.feature_lengths[1:], given.tokens[1:], given.token_lengths[1:])
    torch.testing.assert_close(output.losses["ctc"], rest.losses["ctc"])
    sum(output.losses.values(), torch.zeros(())).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_an_utterance_of_eos_alone_has_finite_losses() -> None:
    output = build()(*batch([30, 50], [1, 4]))
    assert all(loss.isfinite() for loss in output.losses.values())


@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_training_with_garbage_in_the_padding_keeps_gradients_finite(kind: str) -> None:
    student = build(kind=kind, dropout=0.3).train()
    given = batch([60, 24], [5, 3])
    features = given.features.masked_fill(~valid_mask(given.feature_lengths, 60)[..., None], float("nan"))
    output = student(features, *given[1:])
    sum(output.losses.values(), torch.zeros(())).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in student.state_dict().values())


def test_tokens_may_be_padded_further_than_the_longest() -> None:
    student = build()
    given = batch([60, 41], [5, 3])
    further = F.pad(given.tokens, (0, 4), value=PAD)
    expected = student(*given)
    output = student(given.features, given.feature_lengths, further, given.token_lengths)
    torch.testing.assert_close(output.losses, expected.losses)
    assert output.taps["tokens"].values.shape == expected.taps["tokens"].values.shape


def test_history_dropout_hides_tokens_from_the_decoder_while_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = build()
    student.config.decoder.history_dropout = 0.25
    seen: list[Tensor] = []
    history = student.decoder.history

    def remember(previous_tokens: Tensor, *given: Tensor) -> Tensor:
        seen.append(previous_tokens)
        return history(previous_tokens, *given)

    monkeypatch.setattr(student.decoder, "history", remember)
    given = batch([200] * 40, [21] * 40)
    whole = F.pad(given.tokens, (1, 0), value=EOS)[:, :-1]
    student(*given)
    assert torch.equal(seen[0], whole)
    student.train()(*given)
    hidden = seen[1] == UNKNOWN
    assert torch.equal(seen[1][~hidden], whole[~hidden])
    assert not hidden[:, 0].any()  # the start symbol
    assert hidden[:, 1:].float().mean() == pytest.approx(0.25, abs=0.06)


def test_the_number_of_tokens_is_that_of_the_weights_or_the_target() -> None:
    student = build()
    given = batch([80, 33], [7, 2])
    encoded = student.encode(given.features, given.feature_lengths)
    forced = student.fire(encoded, given.token_lengths)
    assert forced.lengths.tolist() == [7, 2]
    free = student.fire(encoded)
    alphas = student.weights(encoded.hidden, encoded.lengths).detach()
    for row in range(2):
        quantity = float(alphas[row].sum())
        expected = math.floor(quantity) + (quantity % 1 > student.config.cif.tail)
        assert int(free.lengths[row]) == expected


def test_autocast_keeps_weights_and_embeddings_in_float32() -> None:
    student = build()
    given = batch([60, 41], [5, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = student(*given)
        encoded = student.encode(given.features, given.feature_lengths)
    assert encoded.hidden.dtype == torch.float32
    assert output.taps["acoustic"].values.dtype == torch.float32
    exact = student(*given)
    for name, loss in output.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.losses[name], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_it_learns_four_utterances_by_heart(kind: str) -> None:
    torch.manual_seed(3)
    student = build_student(config(kind=kind), VOCABULARY, BINS)
    learn_by_heart(student, batch([40, 56, 48, 64], [4, 6, 5, 7], seed=5), recalled)


def recalled(student: CifStudent, given: Batch) -> tuple[list[list[int]], list[list[int]]]:
    """What the decoder and what the CTC head say."""
    hypotheses = greedy(student, given.features, given.feature_lengths)
    path = ctc_greedy(student, student.encode(given.features, given.feature_lengths))
    return [each.ids for each in hypotheses], path


class TestAlignment:
    def test_the_loss_is_huber_of_the_distance_in_tokens(self) -> None:
        generator = torch.Generator().manual_seed(2)
        alphas = torch.rand(3, 20, generator=generator)
        alphas[1, 15:] = 0.0
        token_lengths = torch.tensor([5, 4, 3])
        frames = torch.randint(0, 15, (3, 4), generator=generator)
        valid = torch.tensor([[True] * 4, [True] * 3 + [False], [False] * 4])
        expected = 0.0
        for row in range(3):
            scaled = [
                float(each) * int(token_lengths[row]) / float(alphas[row].sum()) for each in alphas[row]
            ]
            for place in range(4):
                frame = int(frames[row, place])
                distance = abs(sum(scaled[:frame]) + scaled[frame] / 2 - (place + 0.5))
                loss = distance**2 / 2 if distance < 0.5 else 0.5 * (distance - 0.25)
                expected += loss * bool(valid[row, place])
        found = alignment_loss(alphas, token_lengths, frames, valid)
        assert float(found) == pytest.approx(expected, rel=1e-5)

    def test_weights_that_fire_at_the_aligned_frames_have_zero_loss(self) -> None:
        alphas = torch.tensor([[0.0, 0.2, 0.6, 0.2, 0.0, 0.5, 0.0, 0.5, 0.0, 1.0]])
        frames, valid = torch.tensor([[2, 6]]), torch.ones(1, 2, dtype=torch.bool)
        assert float(alignment_loss(alphas, torch.tensor([3]), frames, valid)) == pytest.approx(0.0, abs=1e-9)
        assert float(alignment_loss(2 * alphas, torch.tensor([3]), frames, valid)) == pytest.approx(
            0.0, abs=1e-9
        )

    def test_gradient(self) -> None:
        alphas = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 0.1
        frames, valid = torch.tensor([[1, 4, 7], [0, 2, 0]]), torch.tensor([[True] * 3, [True, True, False]])
        lengths = torch.tensor([4, 3])
        assert torch.autograd.gradcheck(
            lambda each: alignment_loss(each, lengths, frames, valid), (alphas.requires_grad_(),)
        )

    def test_it_moves_the_weights_towards_the_ctc_head(self) -> None:
        student = build()
        student.config.alignment_weight = 1.0
        given = batch([80, 61], [5, 3])
        optimizer = torch.optim.Adam(student.weights.parameters(), 1e-2)
        losses = []
        for _ in range(60):
            loss = student(*given).losses["alignment"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.3 * losses[0]

    def test_without_weight_it_is_not_computed(self) -> None:
        assert "alignment" not in build()(*batch([60], [4])).losses


class TestContext:
    @pytest.mark.parametrize("kind", ["conformer", "transformer"])
    def test_padding_and_batching_change_nothing(self, kind: str) -> None:
        torch.manual_seed(0)
        settings = config(kind=kind)
        settings.cif.context_layers = 2
        student = build_student(settings, VOCABULARY, BINS).eval()
        given = batch([40, 73, 120], [3, 6, 9])
        with torch.no_grad():
            encoded = student.encode(given.features, given.feature_lengths)
            for targets in (None, given.token_lengths):
                together = student.fire(encoded, targets)
                for row in range(3):
                    frames = int(encoded.lengths[row])
                    one = Encoded(encoded.hidden[row : row + 1, :frames], encoded.lengths[row : row + 1])
                    alone = student.fire(one, None if targets is None else targets[row : row + 1])
                    size = int(alone.lengths)
                    assert size == int(together.lengths[row])
                    torch.testing.assert_close(
                        together.embeddings[row, :size], alone.embeddings[0, :size], atol=1e-5, rtol=1e-4
                    )
                    assert not together.embeddings[row, size:].any()

    def test_a_token_attends_to_its_neighbours(self) -> None:
        torch.manual_seed(0)
        settings = config()
        settings.cif.context_layers = 1
        student = build_student(settings, VOCABULARY, BINS).eval()
        given = batch([100], [6])
        encoded = student.encode(given.features, given.feature_lengths)
        hidden = encoded.hidden.detach().requires_grad_()
        plain = build()
        direction = torch.randn(24, generator=torch.Generator().manual_seed(1))
        for each, recognises in ((student, True), (plain, False)):
            fired = each.fire(Encoded(hidden, encoded.lengths))
            assert int(fired.lengths) > 2
            (gradient,) = torch.autograd.grad((fired.embeddings[0, 0] * direction).sum(), hidden)
            later = int(fired.fire_times[0, 0]) + 3  # a weight sees one frame to each side
            assert bool(gradient[0, later:].any()) is recognises

    def test_no_token_at_all(self) -> None:
        torch.manual_seed(0)
        settings = config()
        settings.cif.context_layers = 1
        student = build_student(settings, VOCABULARY, BINS).eval()
        torch.nn.init.constant_(student.weights.linear.bias, -30.0)
        given = batch([40, 60], [2, 2])
        fired = student.fire(student.encode(given.features, given.feature_lengths))
        assert fired.lengths.tolist() == [0, 0]
        assert greedy(student, given.features, given.feature_lengths) is not None


class TestTapsBeforeTheDecoder:
    """`fired` is before the context layers, `history` before the token's own fire."""

    def test_fired_is_before_the_context_layers(self) -> None:
        torch.manual_seed(0)
        given = batch([40, 30], [4, 3])
        plain = build().train(False)
        taps = plain(*given).taps
        assert torch.equal(taps["fired"].values, taps["acoustic"].values)
        with_context = replace(config(), cif=CifConfig(dropout=0.0, context_layers=1))
        student = build_student(with_context, VOCABULARY, BINS).eval()
        taps = student(*given).taps
        assert taps["fired"].values.shape == taps["acoustic"].values.shape
        assert not torch.allclose(taps["fired"].values, taps["acoustic"].values)

    def test_history_depends_on_what_was_before_alone(self) -> None:
        student = build()
        tokens = torch.tensor([[5, 6, 7, EOS]])
        fired = torch.randn(1, 4, 24)
        changed = fired.clone()
        changed[:, 2:] += 1
        previous = F.pad(tokens, (1, 0), value=EOS)[:, :-1]
        first, second = (student.decoder.history(previous, each) for each in (fired, changed))
        torch.testing.assert_close(first[:, :3], second[:, :3])
        assert not torch.allclose(first[:, 3], second[:, 3])
        assert student.tap_dims["history"] == first.shape[-1]
