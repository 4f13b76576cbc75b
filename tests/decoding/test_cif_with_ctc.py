"""Searches of a CIF student together with its CTC head, and fires at the peaks of that head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.decoding.ctc_scorer import CtcPrefixScorer
from retort.decoding.greedy import greedy_fired
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.rescoring import ctc_log_likelihoods
from retort.decoding.token_search import CifSearch, forced_scores
from retort.nn.ctc import greedy_peaks
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig, fire_at
from retort.students.ctc import ctc_log_probs
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS, PAD, Tokenizer
from tiny_students import DECODER, ENCODER, FRONTEND

VOCABULARY = 9


def student(window: int = 2, seed: int = 0, fires: str = "ctc") -> CifStudent:
    torch.manual_seed(seed)
    config = CifStudentConfig(
        frontend=FRONTEND,
        encoder=ENCODER,
        cif=CifConfig(fires=fires),
        decoder=replace(DECODER, window=window),
    )
    made = build_student(config, VOCABULARY, 8).eval()
    assert isinstance(made, CifStudent)
    with torch.no_grad():  # sharp enough that peaks are there
        made.ctc.weight.mul_(8.0)
        made.ctc.bias[[PAD, EOS]] = -100.0  # as in a trained head
        made.decoder.vocabulary.weight.mul_(4.0)
    return made


def frames(sizes: list[int], seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(sizes), max(sizes), 16, generator=generator)
    lengths = torch.tensor(sizes)
    return Encoded(hidden.masked_fill(torch.arange(max(sizes))[None, :, None] >= lengths[:, None, None], 0), lengths)


def peaks_slowly(log_probs: torch.Tensor) -> list[int]:
    """Frames of the best path's tokens, one frame after the other."""
    labels, found = log_probs.argmax(-1).tolist(), []
    for frame, label in enumerate(labels):
        if label in (BLANK, PAD, EOS):
            continue
        if frame and labels[frame - 1] == label:
            if log_probs[frame, label] > log_probs[found[-1], label]:
                found[-1] = frame
        else:
            found.append(frame)
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=4), st.integers(0, 1000))
def test_fires_are_the_peaks_of_the_best_path_and_the_last_frame(sizes: list[int], seed: int) -> None:
    model, encoded = student(), frames(sizes, seed)
    with torch.inference_mode():
        fired, log_probs = model.fire(encoded), ctc_log_probs(model, encoded)
    for row, size in enumerate(sizes):
        expected = [*peaks_slowly(log_probs[row, :size]), size - 1]
        count = len(expected)
        assert int(fired.lengths[row]) == count
        assert fired.fire_times[row, :count].tolist() == [frame + 1 for frame in expected]
        assert torch.equal(fired.embeddings[row, :count], encoded.hidden[row, expected])
        assert not fired.embeddings[row, count:].any()


def test_an_utterance_without_frames_fires_nothing() -> None:
    encoded = Encoded(torch.zeros(2, 3, 16), torch.tensor([0, 3]))
    fired = student().fire(encoded)
    assert int(fired.lengths[0]) == 0
    assert int(fired.lengths[1]) >= 1
    nothing = fire_at(Encoded(torch.zeros(1, 0, 16), torch.tensor([0])), torch.zeros(1, 0).long(), torch.tensor([0]))
    assert nothing.embeddings.shape == (1, 0, 16)


def test_they_cannot_be_scaled_to_a_number_of_tokens() -> None:
    with pytest.raises(ValueError):
        student().fire(frames([5]), torch.tensor([2]))


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("fires", ["ctc", "accumulate"])
def test_step_by_step_is_the_whole_forward_pass(window: int, fires: str) -> None:
    model, encoded = student(window, fires=fires), frames([9, 12, 4])
    with torch.inference_mode():
        fired = model.fire(encoded)
        previous = torch.randint(4, VOCABULARY, fired.embeddings.shape[:2])
        previous[:, 0] = EOS
        whole = model.decode(encoded, fired, previous)
        state = model.start(fired, encoded)
        for step in range(previous.shape[1]):
            logits, state = model.decoder.step(state, previous[:, step], fired.embeddings[:, step])
            there = fired.lengths > step
            assert torch.allclose(logits[there], whole[there, step], atol=1e-5)


@pytest.mark.parametrize("window", [1, 3])
def test_frames_outside_the_window_change_nothing(window: int) -> None:
    model, encoded = student(window), frames([12])
    places = torch.tensor([[2, 6]])
    with torch.inference_mode():
        fired = fire_at(encoded, places, torch.tensor([2]))
        previous = torch.tensor([[EOS, 5, 6]])
        before = model.decode(encoded, fired, previous)
        for frame in range(12):
            changed = encoded.hidden.clone()
            changed[0, frame] += 1.0
            after = model.decode(Encoded(changed, encoded.lengths), fired, previous)
            for token, place in enumerate((2, 6, 11)):
                same = torch.allclose(before[0, token], after[0, token], atol=1e-6)
                assert same == (abs(frame - place) > window)


def test_gradients_of_the_window_are_right() -> None:
    model = student(2).double()
    assert model.decoder.window is not None
    hidden = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
    states = torch.randn(1, 2, 16, dtype=torch.float64, requires_grad=True)

    def attended(hidden: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        memory = model.decoder.window.remember(hidden, torch.tensor([5]), torch.tensor([[0, 3]]))
        return model.decoder.window(states, memory)

    # The softmax is computed in float32, so the check cannot be as strict as in float64.
    assert torch.autograd.gradcheck(attended, (hidden, states), eps=1e-3, atol=1e-3, rtol=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(4, VOCABULARY - 1), max_size=4), st.integers(5, 9), st.integers(0, 1000))
def test_the_ctc_scorer_adds_up_to_the_likelihood(ids: list[int], size: int, seed: int) -> None:
    log_probs = torch.randn(1, size, VOCABULARY, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    (expected,) = ctc_log_likelihoods(log_probs[0], [ids])
    scorer = CtcPrefixScorer(log_probs, torch.tensor([size]), 0.5)
    state, total, previous = scorer.start(1, torch.device("cpu")), 0.0, EOS
    for token in [*ids, EOS, 5]:
        gains, state = scorer.step(state, torch.tensor([previous]))
        total += float(gains[0, token])
        state, previous = scorer.select(state, torch.tensor([0])), token
    if expected > -1e3:
        assert total == pytest.approx(0.5 * expected, abs=1e-3)


def tokenizer() -> Tokenizer:
    from retort.config.schema import TokenizerConfig
    from retort.text.tokenizer_io import train_tokenizer as train

    return train(["abcde"], TokenizerConfig(kind="characters"), teacher=None, teacher_case="keep")


def search(model: CifStudent, **options: object) -> CifSearch:
    return CifSearch(model, tokenizer(), DecodingOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["own", "joint", "attention_rescoring"])
def test_an_utterance_gives_the_same_alone_and_in_any_batch(mode: str) -> None:
    sizes = [7, 12, 3, 10]
    model, encoded = student(), frames(sizes)
    together = search(model, beam=3, mode=mode)(encoded)
    for row, size in enumerate(sizes):
        alone = search(model, beam=3, mode=mode)(
            Encoded(encoded.hidden[row : row + 1, :size], encoded.lengths[row : row + 1])
        )[0]
        assert [each.ids for each in alone] == [each.ids for each in together[row]]
        for one, other in zip(alone, together[row]):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert len(one.ends) == len(one.ids) == len(one.log_probs)


@torch.inference_mode()
def test_a_joint_score_is_the_sum_of_both() -> None:
    weight, compared = 0.4, 0
    for seed in range(6):
        compared += joint_scores_compared(student(seed=seed), frames([11], seed), weight)
    assert compared > 3


def joint_scores_compared(model: CifStudent, encoded: Encoded, weight: float) -> int:
    """Compare the scores of hypotheses without EOS with sums; how many they were."""
    found: list[Hypothesis] = search(model, beam=4, mode="joint", ctc_weight=weight)(encoded)[0]
    fired, log_probs = model.fire(encoded), ctc_log_probs(model, encoded)
    whole = [each for each in found if len(each.ids) == int(fired.lengths[0])]
    for each in whole:
        ids, previous, total = each.ids, EOS, sum(each.log_probs)
        scorer = CtcPrefixScorer(log_probs, encoded.lengths, weight / (1 - weight))
        state = scorer.start(1, torch.device("cpu"))
        for token in ids:
            gains, state = scorer.step(state, torch.tensor([previous]))
            total, previous = total + float(gains[0, token]), token
        assert each.score == pytest.approx(total, abs=1e-3)
    return len(whole)


def test_forced_scores_are_those_of_greedy_decoding_where_the_fires_are_the_same() -> None:
    model, encoded = student(), frames([11])
    log_probs = ctc_log_probs(model, encoded)
    (peaks,) = greedy_peaks(log_probs, encoded.lengths, (BLANK, PAD, EOS))
    ids = [peak.label for peak in peaks]
    fired = model.fire(encoded)
    with torch.inference_mode():
        ((scores, end),) = forced_scores(model, encoded, log_probs, [ids])
        logits = model.decode(encoded, fired, torch.tensor([[EOS, *ids]])).log_softmax(-1)
    assert scores == pytest.approx(logits[0, range(len(ids)), ids].tolist(), abs=1e-5)
    assert end == pytest.approx(float(logits[0, -1, EOS]), abs=1e-5)


def test_training_fires_where_the_best_path_through_the_labels_is() -> None:
    model = student().train()
    features = torch.randn(2, 40, 8)
    tokens = torch.tensor([[4, 5, 4, EOS], [6, EOS, PAD, PAD]])
    output = model(features, torch.tensor([40, 33]), tokens, torch.tensor([4, 2]))
    assert set(output.losses) == set(model.loss_weights) == {"ce", "ctc"}
    assert output.taps["acoustic"].values.shape[:2] == (2, 4)
    sum(output.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(greedy_fired(model.eval(), model.fire(frames([6])), frames([6]))) == 1
