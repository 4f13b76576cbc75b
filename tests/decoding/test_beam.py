from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_searches import BINS, DIM, assert_same, build, distribution, fire, row_of, saying
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from retort.decoding.cif import Scorer, beam_fired
from retort.decoding.greedy import greedy, greedy_fired
from retort.decoding.hypothesis import Hypothesis
from retort.nn.cif import FiredTokens
from retort.nn.decoder import DecoderState
from retort.students.cif import CifStudent
from retort.text.tokenizers import BLANK, EOS, PAD, UNKNOWN
from tiny_students import beam_search, unscored


class SumScorer:
    """Dislikes a token by a table over the sum of all tokens before it: it sees all of the history."""

    def __init__(self, vocabulary: int, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = -3.0 * torch.rand(7, vocabulary, generator=generator)

    def start(self, rows: int, device: torch.device) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64, device=device)

    def step(self, state: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        total = state + previous
        return self.table[total % 7], total

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]


def lm_scores(scorer: SumScorer | None, history: list[int], vocabulary: int) -> Tensor:
    return torch.zeros(vocabulary) if scorer is None else scorer.table[sum(history) % 7]


@torch.inference_mode()
def exhaustive(student: CifStudent, fired: FiredTokens, scorer: SumScorer | None) -> list[Hypothesis]:
    """Every hypothesis of one utterance, by the uncached decoder; after EOS the best token, once a fire."""
    count, size = int(fired.lengths[0]), student.decoder.vocabulary.out_features
    speakable = [token for token in range(size) if token not in (BLANK, PAD, EOS)]
    output = [[*each, EOS] for length in range(count) for each in product(speakable, repeat=length)]
    output += [list(each) for each in product(speakable, repeat=count)]
    found = []
    for ids in output:
        history, own, score = [EOS], [], 0.0
        for step in range(count):
            _, logits = student.decoder(torch.tensor([history]), fired.embeddings[:, : step + 1])
            log_probs = logits[0, -1].float().log_softmax(-1)
            log_probs[[BLANK, PAD]] = float("-inf")
            gains = log_probs + lm_scores(scorer, history, size)
            token = ids[step] if step < len(ids) else int(gains.argmax())
            history.append(token)
            own.append(float(log_probs[token]))
            score += float(gains[token])
        length = ids.index(EOS) if EOS in ids else count
        ends = fired.fire_times[0, :length].tolist()
        found.append(Hypothesis(ids[:length], own[:length], ends, score=score))
    return sorted(found, key=lambda each: -each.score)


@pytest.mark.parametrize("scorer", [None, SumScorer(6)], ids=["student", "scorer"])
@given(fires=st.integers(0, 4), seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_a_beam_wide_enough_finds_all_there_is(scorer: SumScorer | None, fires: int, seed: int) -> None:
    student, fired = build(6, seed), fire([fires], seed)
    everything = exhaustive(student, fired, scorer)
    assert_same(beam_fired(student, fired, 4**4, scorer)[0], everything)
    for beam in range(1, 40):
        found = beam_fired(student, fired, beam, scorer)[0]
        assert len(found) == min(beam, len(everything))
        assert found[0].score <= everything[0].score + 1e-5
        assert {tuple(each.ids) for each in found} <= {
            tuple(each.ids) for each in everything
        }


def test_a_wider_beam_finds_what_a_narrow_one_misses() -> None:
    better = 0
    for seed in range(20):
        student, fired = build(6, seed), fire([6], seed)
        narrow, wide = (beam_fired(student, fired, beam)[0][0].score for beam in (1, 8))
        better += wide > narrow + 1e-5
    assert better >= 3


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    beam=st.integers(1, 12),
    scored=st.booleans(),
    filler=st.sampled_from([0.0, 1e4, float("nan")]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_an_utterance_gives_the_same_alone_and_in_any_batch(
    lengths: list[int], beam: int, scored: bool, filler: float, seed: int
) -> None:
    student, fired = build(16, seed), fire(lengths, seed, filler)
    scorer: Scorer | None = SumScorer(16) if scored else None
    together = beam_fired(student, fired, beam, scorer)
    assert len(together) == len(lengths)
    for row, (found, length) in enumerate(zip(together, lengths)):
        assert_same(found, beam_fired(student, row_of(fired, row), beam, scorer)[0])
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        hypotheses = [each for each in found]
        assert len({tuple(each.ids) for each in hypotheses}) == len(found) >= 1
        for each in hypotheses:
            assert len(each.ids) == len(each.log_probs) <= length
            assert not {BLANK, PAD, EOS} & set(each.ids)
            assert each.ends == fired.fire_times[row, : len(each.ids)].tolist()


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_beam_of_one_is_greedy(lengths: list[int], seed: int) -> None:
    student, fired = build(16, seed), fire(lengths, seed)
    found = beam_fired(student, fired, 1)
    assert [[unscored(each) for each in row] for row in found] == [
        [unscored(each)] for each in greedy_fired(student, fired)
    ]


def test_equal_logits_are_settled_as_greedy_decoding_settles_them() -> None:
    student, fired = saying([[0.0] * 16] * 4)
    assert unscored(beam_fired(student, fired, 1)[0][0]) == unscored(greedy_fired(student, fired)[0])


@pytest.mark.parametrize("beam", [1, 6])
@torch.inference_mode()
def test_from_features_alone_and_in_a_batch(beam: int) -> None:
    student = build(16, seed=3).float()
    student.decoder.vocabulary.weight[EOS] = 0.0
    utterances = [torch.randn(frames, BINS) for frames in (90, 35, 61)]
    features = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True, padding_value=1e4)
    together = beam_search(student, features, torch.tensor([90, 35, 61]), beam)
    for utterance, found in zip(utterances, together):
        alone = beam_search(student, utterance[None], torch.tensor([len(utterance)]), beam)[0]
        assert [each.ids for each in found] == [each.ids for each in alone]
        assert [each.score for each in found] == pytest.approx([each.score for each in alone], abs=1e-3)
        assert len(found[0].ids) > 3
    if beam == 1:
        expected = [unscored(each) for each in greedy(student, features, torch.tensor([90, 35, 61]))]
        assert [unscored(each[0]) for each in together] == expected


def test_fires_after_eos_extend_one_branch_and_cost_score() -> None:
    student, fired = saying(
        [
            distribution(t5=0.6, end=0.4),
            distribution(t6=0.7, t7=0.2, end=0.1),
            distribution(t8=0.5, t9=0.3, end=0.2),
        ]
    )
    found = {tuple(each.ids): math.exp(each.score) for each in beam_fired(student, fired, 4)[0]}
    assert found == pytest.approx(
        {
            (5, 6, 8): 0.6 * 0.7 * 0.5,
            (): 0.4 * 0.7 * 0.5,
            (5, 6, 9): 0.6 * 0.7 * 0.3,
            (5, 6): 0.6 * 0.7 * 0.2,
        },
        rel=1e-5,
    )


def test_ending_early_is_no_way_to_save() -> None:
    """Two readings of every token, and a small probability of the end everywhere, as label smoothing leaves it."""
    student, fired = saying([distribution(t5=0.5, t6=0.49, end=0.01)] * 20)
    best = beam_fired(student, fired, 10)[0][0]
    assert best.score < math.log(0.01)
    assert best.ids == [5] * 20
    assert best.score == pytest.approx(20 * math.log(0.5), rel=1e-5)


def test_blank_and_pad_are_never_emitted() -> None:
    logits = [0.0] * DIM
    logits[BLANK] = logits[PAD] = 9.0
    student, fired = saying([logits] * 2)
    found = beam_fired(student, fired, 300)[0]
    assert len(found) == 1 + 13 + 13 * 13
    assert not {BLANK, PAD} & {token for each in found for token in each.ids}
    assert UNKNOWN in {token for each in found for token in each.ids}


def test_nothing_fired() -> None:
    student = build(16)
    nothing = [Hypothesis([], [], [], score=0.0)]
    assert beam_fired(student, fire([0, 0]), 4) == [nothing, nothing]
    together = beam_fired(student, fire([0, 3]), 4)
    assert together[0] == nothing
    assert len(together[1]) == 4


def test_one_row_at_the_first_fire_then_all_hypotheses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    student = build(16)
    step, rows = student.decoder.step, []

    def counted(state: DecoderState, previous: Tensor, embedding: Tensor) -> tuple[Tensor, DecoderState]:
        rows.append(embedding.shape[0])
        return step(state, previous, embedding)

    monkeypatch.setattr(student.decoder, "step", counted)
    beam_fired(student, fire([4, 2, 0]), 5)
    assert rows == [3, 15, 15, 15]


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def test_fired_embeddings_are_not_copied_for_every_hypothesis() -> None:
    batch, fires, dim, beam = 4, 30, 512, 10
    student, fired = build(16, dim=dim), fire([fires] * batch, dim=dim)
    with Largest() as largest:
        beam_fired(student, fired, beam)
    assert batch * beam * dim <= largest.elements < batch * fires * dim


def test_log_probs_are_the_students_own_without_the_scorer() -> None:
    student, fired = build(16, seed=8), fire([5], seed=8)
    for each in beam_fired(student, fired, 5, SumScorer(16))[0]:
        ids = each.ids
        with torch.inference_mode():
            previous = F.pad(torch.tensor([ids], dtype=torch.int64), (1, 0), value=EOS)[:, : len(ids)]
            _, logits = student.decoder(previous, fired.embeddings[:, : len(ids)])
        expected = logits[0].log_softmax(-1).gather(1, torch.tensor(ids, dtype=torch.int64)[:, None])[:, 0]
        assert each.log_probs == pytest.approx(expected.tolist(), abs=1e-5)
