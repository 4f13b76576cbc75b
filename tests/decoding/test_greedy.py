from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.decoding.greedy import ctc_greedy, greedy, greedy_fired
from retort.decoding.hypothesis import Hypothesis
from retort.nn.cif import FiredTokens
from retort.nn.decoder import DecoderState
from retort.students.cif import CifStudent, CifStudentConfig
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS, PAD
from tiny_students import DECODER, ENCODER, FRONTEND, talking_student

BINS, VOCABULARY = 12, 16
KINDS = [
    ("conformer", "relative"),
    ("conformer", "rotary"),
    ("transformer", "relative"),
    ("transformer", "rotary"),
]


def build(kind: str = "conformer", positions: str = "relative", faithful: bool = False) -> CifStudent:
    """Small, random, in eval mode; its BatchNorm statistics are not trivial and it says EOS now and then."""
    config = CifStudentConfig(
        faithful=faithful,
        frontend=FRONTEND,
        encoder=replace(ENCODER, kind=kind, positions=positions, layers=2, pool_after=[1]),
        decoder=replace(DECODER, layers=2),
    )
    student = talking_student(config, VOCABULARY, BINS, seed=2)
    with torch.no_grad():
        student.encode(torch.randn(3, 50, BINS), torch.tensor([50, 40, 30]))
        student.decoder.vocabulary.weight[EOS] *= 0.5
    return student.eval()


STUDENTS = {(*kind, faithful): build(*kind, faithful) for kind in KINDS for faithful in (False, True)}


def pad(utterances: list[Tensor], garbage: float, extra: int) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([each.shape[0] for each in utterances])
    features = torch.full((len(utterances), int(lengths.max()) + extra, BINS), garbage)
    for row, utterance in enumerate(utterances):
        features[row, : utterance.shape[0]] = utterance
    return features, lengths


def assert_well_formed(hypothesis: Hypothesis, frames: int) -> None:
    assert len(hypothesis.ids) == len(hypothesis.log_probs) == len(hypothesis.ends)
    assert all(each not in (BLANK, PAD, EOS) for each in hypothesis.ids)
    assert all(0 <= each < VOCABULARY for each in hypothesis.ids)
    assert all(each <= 0.0 for each in hypothesis.log_probs)
    assert hypothesis.ends == sorted(hypothesis.ends)
    assert all(0.0 < each <= frames for each in hypothesis.ends)


@pytest.mark.parametrize("kind", STUDENTS, ids=str)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 10), st.integers(11, 90)), min_size=1, max_size=4),
    garbage=st.sampled_from([0.0, 1e4, float("nan"), float("inf")]),
    extra=st.integers(0, 9),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_an_utterance_gives_the_same_alone_and_in_any_batch(
    kind: tuple[str, str, bool], lengths: list[int], garbage: float, extra: int, seed: int
) -> None:
    student = STUDENTS[kind]
    generator = torch.Generator().manual_seed(seed)
    utterances = [torch.randn(length, BINS, generator=generator) for length in lengths]
    features, feature_lengths = pad(utterances, garbage, extra)
    encoded = student.encode(features, feature_lengths)
    fired = student.fire(encoded)
    together = greedy(student, features, feature_lengths)
    paths = ctc_greedy(student, encoded)
    for row, utterance in enumerate(utterances):
        single = student.encode(utterance[None], feature_lengths[row : row + 1])
        fires = student.fire(single)
        torch.testing.assert_close(fired.quantity[row], fires.quantity[0], atol=1e-5, rtol=1e-5)
        rest = float(fires.quantity[0]) % 1.0
        if min(abs(rest - student.config.cif.tail), rest, 1 - rest) < 1e-4:
            continue  # rounding may decide over a token
        count = int(fires.lengths[0])
        assert int(fired.lengths[row]) == count
        torch.testing.assert_close(fired.embeddings[row, :count], fires.embeddings[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fired.fire_times[row, :count], fires.fire_times[0], atol=1e-3, rtol=1e-4)

        alone = greedy(student, utterance[None], feature_lengths[row : row + 1])[0]
        assert together[row].ids == alone.ids
        assert together[row].log_probs == pytest.approx(alone.log_probs, abs=1e-3)
        assert together[row].ends == pytest.approx(alone.ends, abs=1e-3)
        assert_well_formed(together[row], int(single.lengths))
        assert paths[row] == ctc_greedy(student, single)[0]


@torch.inference_mode()
def test_it_is_the_argmax_of_the_whole_decoder_given_its_own_history() -> None:
    student = build()
    fired = student.fire(student.encode(torch.randn(1, 120, BINS), torch.tensor([120])))
    count = int(fired.lengths[0])
    history, scores = [EOS], []
    for step in range(count):
        _, logits = student.decoder(torch.tensor([history]), fired.embeddings[:, : step + 1])
        log_probs = logits[0, step].log_softmax(-1)
        log_probs[[BLANK, PAD]] = float("-inf")
        history.append(int(log_probs.argmax()))
        scores.append(float(log_probs.max()))
    ids = history[1:]
    end = ids.index(EOS) if EOS in ids else count
    hypothesis = greedy_fired(student, fired)[0]
    assert hypothesis.ids == ids[:end]
    assert len(hypothesis.ids) > 3
    assert hypothesis.log_probs == pytest.approx(scores[:end], abs=1e-4)
    assert hypothesis.ends == pytest.approx(fired.fire_times[0, :end].tolist())


def fired_tokens(embeddings: Tensor, lengths: list[int]) -> FiredTokens:
    times = torch.arange(1.0, embeddings.shape[1] + 1).expand(embeddings.shape[:2])
    return FiredTokens(embeddings, torch.tensor(lengths), times, torch.tensor(lengths).float())


def speaking(sequence: list[int]) -> tuple[CifStudent, Tensor]:
    """A student whose decoder says `sequence`: the acoustic part of the output decides alone."""
    student = build()
    with torch.no_grad():
        student.decoder.output.weight[:, :16] = 0.0
        student.decoder.output.weight[:, 16:] = torch.eye(16)
        student.decoder.vocabulary.weight.copy_(10.0 * torch.eye(16))
    embeddings = torch.nn.functional.one_hot(torch.tensor([sequence]), 16).float()
    return student, embeddings


def test_it_is_cut_at_its_first_end() -> None:
    student, embeddings = speaking([5, 6, EOS, 7, EOS, 8])
    hypothesis = greedy_fired(student, fired_tokens(embeddings, [6]))[0]
    assert hypothesis.ids == [5, 6]
    assert hypothesis.ends == [1.0, 2.0]


def test_an_utterance_goes_on_after_its_neighbour_has_ended() -> None:
    student, first = speaking([EOS, 7, 7, 7])
    second = torch.nn.functional.one_hot(torch.tensor([[4, 5, 6, EOS]]), 16).float()
    third = torch.nn.functional.one_hot(torch.tensor([[9, 9, 9, 9]]), 16).float()
    fired = fired_tokens(torch.cat((first, second, third)), [4, 4, 2])
    assert [each.ids for each in greedy_fired(student, fired)] == [[], [4, 5, 6], [9, 9]]


def test_it_stops_when_every_utterance_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    student, first = speaking([5, 6, EOS, 7, 7, 7])
    step, steps = student.decoder.step, []

    def counted(state: DecoderState, previous: Tensor, embedding: Tensor) -> tuple[Tensor, DecoderState]:
        steps.append(state.steps)
        return step(state, previous, embedding)

    monkeypatch.setattr(student.decoder, "step", counted)
    greedy_fired(student, fired_tokens(torch.cat((first, first)), [6, 2]))
    assert steps == [0, 1, 2]


def test_blank_and_pad_are_never_emitted() -> None:
    student, embeddings = speaking([BLANK, PAD, 5])
    with torch.no_grad():
        student.decoder.vocabulary.weight[9] = 0.1  # all else is worse
    ids = greedy_fired(student, fired_tokens(embeddings, [3]))[0].ids
    assert len(ids) == 3
    assert not {BLANK, PAD} & set(ids)
    assert ids[2] == 5


def test_no_end_symbol_is_needed() -> None:
    student, embeddings = speaking([5, 6, 7])
    assert greedy_fired(student, fired_tokens(embeddings, [3]))[0].ids == [5, 6, 7]


def test_nothing_fired() -> None:
    student = build()
    with torch.no_grad():
        student.weights.linear.bias.fill_(-100.0)
    hypotheses = greedy(student, torch.randn(2, 40, BINS), torch.tensor([40, 0]))
    assert hypotheses == [Hypothesis([], [], [])] * 2


def test_the_ctc_path_has_no_repeats_blanks_or_special_ids() -> None:
    student = build()
    path = [5, 5, BLANK, 5, 6, EOS, 6, 6, PAD, BLANK, 7]
    with torch.no_grad():
        student.ctc.weight.copy_(torch.eye(16))
        student.ctc.bias.zero_()
    hidden = torch.nn.functional.one_hot(torch.tensor([path, path]), 16).float()
    best = ctc_greedy(student, Encoded(hidden, torch.tensor([11, 4])))
    assert best == [[5, 5, 6, 6, 7], [5, 5]]
