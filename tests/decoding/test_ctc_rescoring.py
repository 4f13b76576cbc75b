"""Lists rescored with the student's own CTC head."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.audio.fbank import FbankConfig
from retort.config.schema import NormaliserConfig
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.rescoring import ctc_log_likelihoods, ctc_rescored
from retort.students.cif import CifStudentConfig
from retort.students.ctc import ctc_log_probs
from retort.students.factory import build_student
from retort.text.tokenizers import BLANK, EOS, CharacterTokenizer
from tiny_students import ENCODER, FRONTEND, talking_student, unscored
from tiny_transducers import config as transducer_config

SIZE = 6
SENTENCES = [[], [4], [5, 4], [4, 4], [4, 5, 5], [5, 5, 5, 5], [4, 5, 4, 5, 4]]
LETTERS = CharacterTokenizer(list("▁abcdefgh"))
FEATURES = [
    torch.randn(frames, 20, generator=torch.Generator().manual_seed(frames)) for frames in (90, 35, 61)
]


def frames_of(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=generator).mul(2.0).log_softmax(-1)


def slow(log_probs: Tensor, sentence: list[int]) -> float:
    """The sum over every way to say one symbol a frame that comes down to the sentence."""
    total = 0.0
    for path in product(range(SIZE), repeat=len(log_probs)):
        if [label for label, _ in groupby(path) if label != BLANK] == sentence:
            total += math.exp(sum(float(log_probs[frame, label]) for frame, label in enumerate(path)))
    return math.log(total) if total else -math.inf


@given(frames=st.integers(0, 5), seed=st.integers(0, 10**6))
@settings(max_examples=8)
def test_all_alignments_are_added(frames: int, seed: int) -> None:
    log_probs = frames_of(frames, seed)
    expected = [slow(log_probs, each) for each in SENTENCES]
    assert ctc_log_likelihoods(log_probs, SENTENCES) == pytest.approx(expected, abs=1e-5)


def candidates(*scores: float) -> list[Hypothesis]:
    return [Hypothesis(ids, [-0.1] * len(ids), [], score=score) for ids, score in zip(SENTENCES, scores)]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("faithful", [False, True])
def test_it_is_the_sum_of_both(weight: float, faithful: bool) -> None:
    found = [candidates(-1.0, -1.5, -2.0, -2.5, -9.0), candidates(-3.0, -4.0)]
    rows = [frames_of(5, 1), frames_of(3, 2)]
    padded = torch.stack([rows[0], torch.cat([rows[1], torch.full((2, SIZE), math.nan)])])
    for given_, own, rescored in zip(
        found, rows, ctc_rescored(found, padded, torch.tensor([5, 3]), weight, faithful), strict=True
    ):
        expected = [
            ((1 - weight) * each.score + weight * slow(own, [*each.ids, *[EOS] * faithful]), each)
            for each in given_
        ]
        expected.sort(key=lambda pair: -pair[0])
        assert [unscored(each) for each in rescored] == [unscored(each) for _, each in expected]
        assert [each.score for each in rescored] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_what_does_not_fit_into_the_frames_goes_unless_it_is_all_there_is() -> None:
    log_probs, lengths = frames_of(2, 3)[None], torch.tensor([2])
    (rescored,) = ctc_rescored(
        [candidates(-4.0, -3.0, -2.0, -1.0)], log_probs, lengths, 0.5
    )  # "4 4" needs three frames
    assert sorted(each.ids for each in rescored) == [[], [4], [5, 4]]
    long = candidates(-1.0, -2.0, -3.0, -1.0, -2.0)[3:]
    assert ctc_rescored([long], log_probs, lengths, 0.5) == [long]


def make(kind: str) -> Recogniser:
    if kind == "cif":
        transducer = transducer_config()
        config = CifStudentConfig(frontend=transducer.frontend, encoder=transducer.encoder)
        student: Any = talking_student(config, LETTERS.size, 20, 3).float()
    else:
        torch.manual_seed(3)
        config = replace(transducer_config(), encoder=replace(ENCODER, layers=2), frontend=FRONTEND)
        student = build_student(config, LETTERS.size, 20)
        with torch.no_grad():
            student.joiner.output.weight.mul_(6.0)
            student.joiner.output.bias[BLANK] += 6.0  # fewer tokens than frames, or CTC could not say them
    with torch.no_grad():
        student.ctc.weight.mul_(6.0)
    return Recogniser(student.eval(), LETTERS, FbankConfig(bins=20), NormaliserConfig(case="lower"))


@pytest.mark.parametrize("kind", ["cif", "transducer"])
@torch.inference_mode()
def test_the_search_follows_the_mode(kind: str) -> None:
    recogniser = make(kind)
    own = DecodingOptions(beam=4, nbest=4)
    rescored = replace(own, mode="ctc_rescoring", ctc_weight=0.6)
    encoded = recogniser.encode(FEATURES)
    log_probs = ctc_log_probs(recogniser.student, encoded)  # type: ignore[arg-type]
    plain: Any = recogniser.search(FEATURES, own)
    found: Any = recogniser.search(FEATURES, rescored)
    assert found == ctc_rescored(plain, log_probs, encoded.lengths, 0.6)
    assert found != plain
    for features, together in zip(FEATURES, found):
        (alone,) = recogniser.search([features], rescored)
        assert isinstance(alone, list)
        assert [each.ids for each in alone] == [each.ids for each in together]
        assert [each.score for each in alone] == pytest.approx([each.score for each in together], abs=1e-3)
