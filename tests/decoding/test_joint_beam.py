from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby, product

import pytest
import torch
from torch import Tensor

from retort.decoding.attention import JointWeights, greedy_attention, joint_beam, teacher_forced
from retort.decoding.fusion import Fusion
from retort.decoding.hypothesis import Hypothesis
from retort.students.attention import AttentionStudent, AttentionStudentConfig
from retort.students.ctc import ctc_log_probs
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS, PAD, CharacterTokenizer
from tiny_lms import TableLM
from tiny_students import CROSS_DECODER, ENCODER, FRONTEND

LETTERS = CharacterTokenizer(list("ab"))  # ids 4 and 5, besides UNKNOWN
SIZE = LETTERS.size
SPOKEN = [token for token in range(SIZE) if token not in (BLANK, PAD, EOS)]


def build(seed: int = 0, vocabulary: int = SIZE) -> AttentionStudent:
    torch.manual_seed(seed)
    config = AttentionStudentConfig(
        frontend=FRONTEND, encoder=ENCODER, decoder=replace(CROSS_DECODER, layers=2)
    )
    student = build_student(config, vocabulary, 12)
    assert isinstance(student, AttentionStudent)
    with torch.no_grad():
        student.decoder.vocabulary.weight.mul_(3.0)
        student.ctc.weight.mul_(3.0)
    student.decoder.double()  # batches differ by rounding, and float32 would let it decide over near equals
    return student.double().eval()


def make_encoded(lengths: list[int], seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.zeros(len(lengths), max(lengths), ENCODER.dim, dtype=torch.float64)
    for row, length in enumerate(lengths):
        hidden[row, :length] = torch.randn(length, ENCODER.dim, generator=generator, dtype=torch.float64)
    return Encoded(hidden, torch.tensor(lengths))


def row_of(encoded: Encoded, row: int) -> Encoded:
    length = encoded.lengths[row : row + 1]
    return Encoded(encoded.hidden[row : row + 1, : int(length)], length)


def aligned(log_probs: Tensor, ids: list[int]) -> float:
    """log p of a label sequence, all alignments tried."""
    total = 0.0
    for path in product({BLANK, *ids}, repeat=len(log_probs)):
        if [label for label, _ in groupby(path) if label != BLANK] == ids:
            total += math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(path)))
    return math.log(total) if total else -math.inf


@torch.inference_mode()
def everything(
    student: AttentionStudent, encoded: Encoded, weights: JointWeights, lm: TableLM | None
) -> list[tuple[list[int], list[float], float]]:
    """Every hypothesis of one utterance: its tokens, the decoder's log-probabilities, its score; best first."""
    recognised = ctc_log_probs(student, encoded)[0]
    found = []
    for count in range(int(encoded.lengths[0]) + 1):
        for each in product(SPOKEN, repeat=count):
            ids = list(each)
            previous = torch.tensor([[EOS, *ids]])
            logits = student.decoder(previous, encoded.hidden, encoded.lengths).logits[0]
            scores = logits.log_softmax(-1).gather(1, torch.tensor([*ids, EOS])[:, None])[:, 0].tolist()
            score = (1 - weights.ctc) * sum(scores) + weights.length * count
            if weights.ctc:
                score += weights.ctc * aligned(recognised, ids)
            if lm is not None:
                score += 0.6 * float(lm.score([ids])[0].sum())
            if score > -math.inf:
                found.append((ids, scores[:-1], score))
    return sorted(found, key=lambda each: -each[2])


def assert_same(found: list[Hypothesis], expected: list[tuple[list[int], list[float], float]]) -> None:
    assert [each.ids for each in found] == [ids for ids, _, _ in expected]
    for each, (_, scores, score) in zip(found, expected):
        assert each.score == pytest.approx(score, abs=1e-4)
        assert each.log_probs == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.0), (0.5, 1.5), (1.0, -0.5)])
@pytest.mark.parametrize("scored", [False, True])
def test_a_beam_wide_enough_finds_all_there_is(weights: tuple[float, float], scored: bool) -> None:
    for seed in range(3):
        student, encoded, chosen = build(seed), make_encoded([3], seed), JointWeights(*weights)
        lm = TableLM(LETTERS, seed) if scored else None
        real = everything(student, encoded, chosen, lm)
        scorer = None if lm is None else Fusion(lm, 0.6)
        assert_same(joint_beam(student, encoded, 200, chosen, scorer)[0], real)
        for beam in (1, 2, 5):
            found = joint_beam(student, encoded, beam, chosen, scorer)[0]
            assert 1 <= len(found) <= beam
            assert found[0].score <= real[0][2] + 1e-4
            by_ids = {tuple(ids): score for ids, _, score in real}
            for each in found:
                assert each.score == pytest.approx(by_ids[tuple(each.ids)], abs=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_an_utterance_gives_the_same_alone_and_in_any_batch(beam: int, weight: float) -> None:
    for seed in range(4):
        student, encoded = build(seed), make_encoded([7, 1, 4], seed)
        weights, scorer = JointWeights(weight, 0.2), Fusion(TableLM(LETTERS), 0.3)
        together = joint_beam(student, encoded, beam, weights, scorer)
        for row, found in enumerate(together):
            alone = joint_beam(student, row_of(encoded, row), beam, weights, scorer)[0]
            assert_same(
                found, [(each.ids, each.log_probs, each.score) for each in alone]
            )
            assert len({tuple(each.ids) for each in found}) == len(found)
            for each in found:
                assert len(each.ids) <= int(encoded.lengths[row])
                assert not {BLANK, PAD, EOS} & set(each.ids)


def test_the_search_ends_before_the_last_frame_where_nothing_can_be_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, encoded = build(1), make_encoded([60], 1)
    with torch.no_grad():
        student.decoder.vocabulary.weight[EOS] = 0.0
    step, steps = student.decoder.step, []

    def counted(*args: object) -> object:
        steps.append(1)
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(student.decoder, "step", counted)
    found = joint_beam(student, encoded, 4, JointWeights(0.3))[0]
    assert len(found) == 4
    assert len(steps) < 61
    wide = joint_beam(student, encoded, 16, JointWeights(0.3))[0]
    assert wide[0].score >= found[0].score - 1e-6


def test_greedy_takes_the_decoders_best_token_until_the_end() -> None:
    stopped = 0
    for seed in range(8):
        student, encoded = build(seed, 9), make_encoded([6, 2], seed)
        for row, found in enumerate(greedy_attention(student, encoded)):
            one, ids, scores = row_of(encoded, row), [EOS], []
            with torch.inference_mode():
                for _ in range(int(one.lengths[0])):
                    logits = student.decoder(torch.tensor([ids]), one.hidden, one.lengths).logits[0, -1]
                    log_probs = logits.log_softmax(-1)
                    log_probs[[BLANK, PAD]] = -math.inf
                    ids.append(int(log_probs.argmax()))
                    scores.append(float(log_probs.max()))
                    if ids[-1] == EOS:
                        break
            stopped += ids[-1] == EOS
            expected = [each for each in ids[1:] if each != EOS]
            assert found.ids == expected
            assert found.log_probs == pytest.approx(scores[: len(expected)], abs=1e-5)
    assert stopped > 0


def test_decoder_log_probs_of_given_sentences() -> None:
    student, encoded = build(2), make_encoded([5, 3], 2)
    sentences = [[[4, 5, 4], [], [5]], [[4, 4]]]
    for row, each in enumerate(teacher_forced(student.decoder, encoded, sentences)):
        one = row_of(encoded, row)
        for ids, (scores, end) in zip(sentences[row], each, strict=True):
            with torch.inference_mode():
                logits = student.decoder(torch.tensor([[EOS, *ids]]), one.hidden, one.lengths).logits[0]
            expected = logits.log_softmax(-1).gather(1, torch.tensor([*ids, EOS])[:, None])[:, 0].tolist()
            assert [*scores, end] == pytest.approx(expected, abs=1e-5)
