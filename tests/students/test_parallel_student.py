"""The CIF student with a parallel decoder: two passes in training, one at run time, and the searches over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
import utterances
from torch import Tensor
from utterances import BINS, Batch, assert_a_batch_is_its_utterances

from retort.decoding.cif import beam_fired
from retort.decoding.greedy import greedy, greedy_fired
from retort.decoding.options import DecodingOptions
from retort.decoding.token_search import CifSearch
from retort.nn.cif import FiredTokens
from retort.nn.masks import valid_mask
from retort.nn.parallel_decoder import ParallelConfig, ParallelDecoder
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig
from retort.students.factory import build_student
from retort.text.tokenizers import BLANK, EOS, PAD, CharacterTokenizer
from tiny_students import (
    ENCODER,
    FRONTEND,
    beam_search,
    smoothed_cross_entropy,
    talking_student,
    unscored,
)

VOCABULARY = 9
FRAMES, UNITS = [40, 73, 24], [3, 6, 2]


def config(dropout: float = 0.0, glancing: float = 0.75, cross: bool = True) -> CifStudentConfig:
    return CifStudentConfig(
        frontend=FRONTEND,
        encoder=replace(ENCODER, layers=3, convolution_norm="layer", dropout=dropout, attention_dropout=dropout,
            pool_after=[1]),
        cif=CifConfig(dropout=dropout),
        decoder=ParallelConfig(
            layers=1, dim=16, heads=2, feedforward=32, glancing=glancing, cross_attention=cross, dropout=dropout,
            embedding_dropout=dropout,
        ),
    )  # fmt: skip


def build(**options: float | bool) -> CifStudent:
    return talking_student(config(**options), VOCABULARY, BINS)  # type: ignore[arg-type]


def batch() -> Batch:
    return utterances.batch(FRAMES, UNITS, vocabulary=VOCABULARY)


def test_without_training_there_is_one_pass_and_padding_changes_nothing() -> None:
    student, given = build().eval(), batch()
    assert_a_batch_is_its_utterances(student, given)
    together = student(*given)
    taps, mask = together.taps, valid_mask(given[3], 6)
    ce = smoothed_cross_entropy(taps["tokens"].values[mask], given[2][mask], student.config.label_smoothing)
    torch.testing.assert_close(together.losses["ce"], ce)
    torch.testing.assert_close(taps["tokens"].values, student.decoder.vocabulary(taps["linguistic"].values))
    assert "shown" not in together.metrics


def test_the_tap_acoustic_is_what_was_fired_whatever_is_shown() -> None:
    student, given = build(glancing=1.0).train(), batch()
    encoded = student.encode(given[0], given[1])
    torch.manual_seed(1)
    output = student(*given)
    fired = student.fire(encoded, given[3])
    torch.testing.assert_close(output.taps["acoustic"].values, fired.embeddings)
    assert int(output.metrics["shown"]) > 0


def test_the_second_pass_is_given_what_the_first_got_wrong() -> None:
    student, given = build(glancing=0.5).train(), batch()
    torch.manual_seed(1)
    output = student(*given)
    encoded = student.encode(given[0], given[1])
    fired = student.fire(encoded, given[3])
    assert isinstance(student.decoder, ParallelDecoder)
    recognised = (fired.embeddings, fired.lengths, encoded.hidden, encoded.lengths)
    predictions = student.decoder(*recognised)[1].argmax(-1)
    mask = valid_mask(given[3], 6)
    wrong = ((predictions != given[2]) & mask).sum(1)
    assert int(output.metrics["correct"]) == int(mask.sum() - wrong.sum())
    assert int(output.metrics["shown"]) == sum(math.floor(0.5 * each) for each in wrong.tolist()) > 0
    assert (output.taps["tokens"].values - student.decoder(*recognised)[1])[mask].abs().amax() > 1e-3
    # All of a small utterance's ways of being shown: one of them gives what came out.
    row, count = 0, math.floor(0.5 * int(wrong[0]))
    found = []
    for places in product([False, True], repeat=3):
        if sum(places) == count:
            shown = torch.zeros_like(mask)
            shown[row, :3] = torch.tensor(places)
            logits = student.decoder(*recognised, (given[2], shown))[1]
            found.append(torch.allclose(logits[row, :3], output.taps["tokens"].values[row, :3], atol=1e-5))
    assert found.count(True) == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_weight_learns_from_the_second_pass(precision: torch.dtype) -> None:
    student = build(dropout=0.1).train()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        output = student(*batch())
    torch.stack(
        [student.loss_weights[name] * value for name, value in output.losses.items()]
    ).sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias moves no attention weight, and the embedding of what is not in the text may stay.
        assert parameter.grad.any() or name.endswith("key.bias"), name


def test_without_a_share_there_is_no_first_pass() -> None:
    student = build(glancing=0.0).train()
    output = student(*batch())
    assert "shown" not in output.metrics
    torch.testing.assert_close(output.taps["tokens"].values, build().eval()(*batch()).taps["tokens"].values)


def test_a_process_without_utterances_goes_through_every_layer() -> None:
    student, nothing = build().train(), torch.zeros(1, dtype=torch.int64)
    output = student(torch.zeros(1, 1, BINS), nothing, torch.zeros(1, 0, dtype=torch.int64), nothing)
    torch.stack(list(output.losses.values())).sum().backward()
    assert not any(bool(loss) for loss in output.losses.values())
    assert all(each.grad is not None and not each.grad.any() for each in student.decoder.parameters())


@torch.inference_mode()
def recognised(student: CifStudent, row: int) -> tuple[FiredTokens, list[list[float]]]:
    """Fires of one utterance, and the log-probabilities of its positions."""
    features, lengths, *_ = batch()
    encoded = student.encode(features[row : row + 1, : FRAMES[row]], lengths[row : row + 1])
    fired = student.fire(encoded)
    assert isinstance(student.decoder, ParallelDecoder)
    _, logits = student.decoder(fired.embeddings, fired.lengths, encoded.hidden, encoded.lengths)
    log_probs = logits[0].double().log_softmax(-1)
    log_probs[:, [BLANK, PAD]] = -math.inf
    return fired, log_probs.tolist()


def brute_force(positions: list[list[float]]) -> list[tuple[tuple[int, ...], float]]:
    """All hypotheses of independent positions; after EOS the best token, as in every search here."""
    best: dict[tuple[int, ...], float] = {}
    for sequence in product(range(2, len(positions[0])), repeat=len(positions)):
        if EOS in sequence:
            end = sequence.index(EOS)
            sequence = sequence[: end + 1]
            score = sum(each[token] for each, token in zip(positions, sequence))
            score += sum(max(each) for each in positions[end + 1 :])
            best[sequence[:end]] = score
        else:
            best[sequence] = sum(each[token] for each, token in zip(positions, sequence))
    return sorted(best.items(), key=lambda each: -each[1])


@pytest.mark.parametrize("cross", [True, False])
def test_a_beam_of_any_width_finds_exactly_the_best(cross: bool) -> None:
    student = build(cross=cross).eval()
    features, lengths, *_ = batch()
    row = 2
    fired, positions = recognised(student, row)
    assert 3 <= len(positions) <= 6
    everything = brute_force(positions)
    for beam in (1, 2, 5, 17, 60):
        together = beam_search(student, features, lengths, beam)
        found = together[row]
        assert len(found) == beam
        for each, (ids, score) in zip(found, everything):
            assert each.score == pytest.approx(score, abs=1e-4)
            assert tuple(each.ids) == ids
            assert each.ends == pytest.approx(fired.fire_times[0, : len(ids)].tolist(), abs=1e-4)
    (best,) = greedy(student, features[row : row + 1, : FRAMES[row]], lengths[row : row + 1])
    assert tuple(best.ids) == everything[0][0]


class Dislikes:
    """A scorer that dislikes a token by a table over the one before it, and the same token most."""

    table = -4.0 * torch.rand(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(4))
    table -= 20.0 * torch.eye(VOCABULARY)

    def start(self, rows: int, device: torch.device) -> None:
        return None

    def step(self, state: None, previous: Tensor) -> tuple[Tensor, None]:
        return self.table[previous], None

    def select(self, state: None, rows: Tensor) -> None:
        return None


@pytest.mark.parametrize("row", [0, 2])
def test_a_scorer_goes_over_the_positions_from_left_to_right(row: int) -> None:
    student, scorer = build().eval(), Dislikes()
    with torch.no_grad():
        student.weights.linear.bias.sub_(2.0)  # few fires, so that all can be tried
    features, lengths, *_ = batch()
    fired, positions = recognised(student, row)
    assert 3 <= len(positions) <= 4

    def best(history: int, rest: list[list[float]], ended: bool) -> tuple[float, tuple[int, ...]]:
        """Of all that can be recognised; after EOS the best token alone, as in every search here."""
        if not rest:
            return 0.0, ()
        gains = {
            token: rest[0][token] + float(scorer.table[history, token]) for token in range(2, VOCABULARY)
        }
        tokens = [max(gains, key=lambda token: gains[token])] if ended else list(gains)
        found = []
        for token in tokens:
            score, sequence = best(token, rest[1:], ended or token == EOS)
            found.append((gains[token] + score, (token, *sequence)))
        return max(found)

    score, sequence = best(EOS, positions, False)
    sequence = sequence[: sequence.index(EOS)] if EOS in sequence else sequence
    encoded = student.encode(features[row : row + 1, : FRAMES[row]], lengths[row : row + 1])
    (found,) = beam_fired(student, fired, 7**4, scorer, encoded)
    assert found[0].score == pytest.approx(score, abs=1e-4)
    assert tuple(found[0].ids) == sequence
    assert sequence != tuple(beam_fired(student, fired, 1, None, encoded)[0][0].ids)


class Contrary:
    """Finds improbable what the search found best."""

    parameters = 7

    def score(self, sentences: Sequence[Sequence[int]]) -> list[float]:
        return [float(index) for index, _ in enumerate(sentences)]


def test_lists_are_rescored() -> None:
    student = build().eval()
    features, lengths, *_ = batch()
    letters = CharacterTokenizer(list("abcde"))
    plain = CifSearch(student, letters, DecodingOptions(beam=5))
    search = CifSearch(student, letters, plain.options)
    search.rescoring_lm, search.options = (
        Contrary(),
        DecodingOptions(beam=5, rescore="contrary", rescore_weight=100.0),
    )
    encoded = student.encode(features[2:, : FRAMES[2]], lengths[2:])
    (before,), (after,) = plain(encoded), search(encoded)
    assert [unscored(each) for each in after] == [unscored(each) for each in before[::-1]]


@torch.inference_mode()
def test_a_search_without_the_encoders_output_is_an_error_where_it_is_read() -> None:
    student = build().eval()
    fired, _ = recognised(student, 0)
    with pytest.raises(ValueError, match="requires the encoder output"):
        greedy_fired(student, fired)
    assert [unscored(each) for each in greedy_fired(build(cross=False).eval(), fired)] == [
        unscored(each[0]) for each in beam_fired(build(cross=False).eval(), fired, 1)
    ]


def test_it_needs_nothing_at_run_time_that_only_training_reads() -> None:
    parallel = build_student(config(), VOCABULARY, BINS)
    names = {name.split(".")[0] for name, _ in parallel.decoder.named_parameters()}  # type: ignore[union-attr]
    assert names == {"input", "layers", "norm", "vocabulary"}
    assert parallel.prose.endswith("parallel")
