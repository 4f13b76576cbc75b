"""Students of both kinds through `Recogniser`: modes, language models, times, and options that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from retort.audio.fbank import FbankConfig
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.decoding.attention import teacher_forced
from retort.decoding.ctc import prefix_beam, with_times
from retort.decoding.factory import open_search
from retort.decoding.fusion import Fusion
from retort.decoding.greedy import ctc_best_path
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.rescoring import TokenRescoringLM, rescore
from retort.decoding.token_search import CtcSearch
from retort.nn.ctc import label_frames
from retort.students.ctc import ctc_log_probs
from retort.students.factory import build_student
from retort.students.hybrid import HybridStudent
from retort.text.normalise import Normaliser
from retort.text.tokenizers import CharacterTokenizer
from tiny_lms import TableLM
from tiny_students import DECODER, ENCODER, FRONTEND, student_config

LETTERS = CharacterTokenizer(list("▁abcdefgh"))
FEATURES = [
    torch.randn(frames, 20, generator=torch.Generator().manual_seed(frames)) for frames in (90, 35, 61)
]


def make(kind: str) -> Recogniser:
    torch.manual_seed(8)  # its greedy decoder says something, and ends
    config = student_config(
        kind,
        frontend=FRONTEND,
        encoder=replace(ENCODER, layers=2, convolution_norm="layer"),
        decoder=DECODER,
    )
    student: Any = build_student(config, LETTERS.size, 20)
    with torch.no_grad():
        student.ctc.weight.mul_(6.0)
        if kind == "attention":
            student.decoder.vocabulary.weight.mul_(6.0)
    return Recogniser(student, LETTERS, FbankConfig(bins=20), NormaliserConfig(case="lower"))


@pytest.fixture(scope="module", params=["ctc", "attention"])
def either(request: pytest.FixtureRequest) -> Recogniser:
    return make(request.param)


@pytest.fixture(scope="module")
def attention() -> Recogniser:
    return make("attention")


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> TableLM:
    """Is in the folder `lm`."""
    lm = TableLM(LETTERS)
    monkeypatch.setattr("retort.decoding.fusion.open_causal_lm", lambda folder, device: lm)
    monkeypatch.setattr("retort.decoding.rescoring.is_causal_lm", lambda name: name == "lm")
    return lm


def ids(found: Sequence[Any]) -> list[list[list[int]]]:
    return [[each.ids for each in row] for row in found]


MODES = [
    {},
    {"beam": 4},
    {"beam": 4, "mode": "ctc"},
    {"beam": 4, "mode": "attention_rescoring"},
    {"beam": 4, "lm": "lm", "lm_weight": 0.4, "length_weight": 0.8},
    {"beam": 1, "lm": "lm", "lm_weight": 0.2, "length_weight": 2.0},
    {"beam": 4, "length_weight": 1.5},
    {"length_weight": 0.5},
    {
        "beam": 4,
        "mode": "attention_rescoring",
        "lm": "lm",
        "lm_weight": 0.4,
        "rescore": "lm",
        "rescore_weight": 0.3,
    },
]


@pytest.mark.parametrize("values", MODES)
def test_alone_and_in_a_batch_with_times_that_never_descend(
    either: Recogniser, lm: TableLM, values: dict[str, Any]
) -> None:
    if either.student.config.kind == "ctc" and values.get("mode") == "attention_rescoring":
        return
    options = DecodingOptions(**values)
    together = either.search(FEATURES, options)
    for features, found in zip(FEATURES, together):
        assert isinstance(found, list)
        (alone,) = either.search([features], options)
        assert ids([found]) == ids([alone])
        assert [each.score for each in found] == pytest.approx([each.score for each in alone], abs=1e-3)
        frames = int(either.student.encoder.output_lengths(torch.tensor([len(features)])))
        for each in found:
            hypothesis = each
            assert hypothesis.starts is not None
            assert len(hypothesis.ids) == len(hypothesis.log_probs) == len(hypothesis.ends)
            assert all(0 <= start < end <= frames for start, end in zip(hypothesis.starts, hypothesis.ends))
            assert hypothesis.starts == sorted(hypothesis.starts)
            assert hypothesis.ends == sorted(hypothesis.ends)
            assert all(score <= 0 for score in hypothesis.log_probs)
    assert any(each.ids for row in together for each in row)  # type: ignore[union-attr]


@torch.inference_mode()
def test_ctc_gives_confidence_and_time_of_each_token(either: Recogniser) -> None:
    search = CtcSearch(either.student, LETTERS, DecodingOptions(beam=5, nbest=5))
    encoded = either.encode(FEATURES)
    log_probs = ctc_log_probs(search.head, encoded)
    prefixes = prefix_beam(log_probs, encoded.lengths, 5)
    for row, (found, expected) in enumerate(zip(search(encoded), prefixes)):
        assert [(each.ids, each.score) for each in found] == [(p.ids, p.score) for p in expected]
        for each in found:
            labels = torch.tensor([each.ids])
            length = encoded.lengths[row : row + 1]
            frames, _ = label_frames(
                log_probs[row : row + 1], length, labels, torch.tensor([labels.shape[1]])
            )
            assert each.starts == frames[0].tolist()
            sure = log_probs[row, frames[0], labels[0]]
            assert each.log_probs == pytest.approx(sure.tolist(), abs=1e-6)
    greedy = search.ctc_hypotheses(encoded)
    assert greedy == [each.ids for each in ctc_best_path(search.head, encoded)]


def test_times_where_the_tokens_are_more_than_the_frames() -> None:
    hypothesis = Hypothesis([4, 4, 4], [-1.0, -2.0, -3.0], [])
    log_probs = torch.randn(1, 4, LETTERS.size).log_softmax(-1)
    ((timed,),) = with_times([[hypothesis]], log_probs, torch.tensor([4]), ctc_scores=False)
    assert timed.starts == pytest.approx([0.0, 4 / 3, 8 / 3])
    assert timed.ends == pytest.approx([4 / 3, 8 / 3, 4.0])
    assert timed.log_probs == [-1.0, -2.0, -3.0]


def test_lists_of_different_lengths_keep_their_rows() -> None:
    log_probs = torch.randn(3, 9, LETTERS.size).log_softmax(-1)
    spoken = [[[4, 5]], [[6], [], [4, 4]], [[]]]
    found = [[Hypothesis(each, [0.0] * len(each), [], score=0.0) for each in row] for row in spoken]
    assert ids(with_times(found, log_probs, torch.tensor([9, 6, 9]), ctc_scores=True)) == spoken


@torch.inference_mode()
def test_attention_rescoring_is_the_sum_of_both(attention: Recogniser, lm: TableLM) -> None:
    options = DecodingOptions(
        beam=4, mode="attention_rescoring", ctc_weight=0.4, lm="lm", lm_weight=0.5, length_weight=0.7
    )
    student: Any = attention.student
    encoded = attention.encode(FEATURES)
    log_probs = ctc_log_probs(student, encoded)
    prefixes = prefix_beam(log_probs, encoded.lengths, 4, Fusion(lm, 0.5), 0.7)
    output = teacher_forced(student.decoder, encoded, [[each.ids for each in row] for row in prefixes])
    for row, found in enumerate(attention.search(FEATURES, options)):
        expected = []
        for prefix, (tokens, end) in zip(prefixes[row], output[row]):
            lm_score = 0.5 * float(lm.score([prefix.ids])[0].sum()) + 0.7 * len(prefix.ids)
            expected.append((0.4 * prefix.log_prob + 0.6 * (sum(tokens) + end) + lm_score, prefix.ids, tokens))
        expected.sort(key=lambda each: -each[0])
        for each, (score, sentence, tokens) in zip(found, expected, strict=True):  # type: ignore[arg-type]
            assert each.score == pytest.approx(score, abs=1e-4)
            assert each.ids == sentence
            assert each.log_probs == pytest.approx(tokens, abs=1e-5)


def test_a_rescoring_lm_rescores_and_length_counts_once(either: Recogniser, lm: TableLM) -> None:
    first = DecodingOptions(beam=4, lm="lm", lm_weight=0.3, length_weight=0.6)
    both = replace(first, rescore="lm", rescore_weight=0.8)
    expected = rescore(either.search(FEATURES, first), TokenRescoringLM(lm), 0.8, 0.0)  # type: ignore[arg-type]
    assert either.search(FEATURES, both) == expected
    assert set(either.opened(both).parameters) == {"student", "lm", "rescore"}


@torch.inference_mode()
def test_mode_ctc_decodes_the_head_of_any_student_with_one(
    recogniser: Recogniser, attention: Recogniser
) -> None:
    for each in (recogniser, attention):
        encoded = each.encode(FEATURES)
        best = ctc_best_path(each.student, encoded)  # type: ignore[arg-type]
        found = each.search(FEATURES, DecodingOptions(mode="ctc"))
        assert [row[0] for row in found] == best  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("cif", {"mode": "attention_rescoring", "beam": 4}, "a cif student has no decoder that can score"),
        ("ctc", {"mode": "attention_rescoring", "beam": 4}, "a ctc student has no decoder that can score"),
        ("hybrid", {"mode": "ctc"}, "not apply to a hybrid student"),
        ("hybrid", {"mode": "ctc_rescoring", "beam": 4}, "not apply to a hybrid student"),
        (
            "ctc",
            {"mode": "ctc_rescoring", "beam": 4},
            "the search of a ctc student uses its CTC head already",
        ),
        ("attention", {"mode": "ctc_rescoring", "beam": 4}, "the search of an attention student"),
        ("cif", {"ctc_weight": 0.5}, "ctc weight is 0.5"),
        ("hybrid", {"lm": "x", "lm_weight": 0.1}, "not apply to a hybrid student"),
        ("ctc", {"ctc_weight": 0.5}, "ctc weight is 0.5"),
        ("attention", {"ctc_weight": 0.5, "mode": "ctc"}, "mode ctc uses the CTC head alone"),
        ("cif", {"lm": "lm", "lm_weight": 0.1, "length_weight": 0.5}, "the number of its fires"),
        ("cif", {"length_weight": 0.5}, "the number of its fires"),
        ("hybrid", {"length_weight": 0.5}, "not apply to a hybrid student"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(kind: str, values: dict[str, Any], words: str) -> None:
    config = student_config(kind, frontend=FRONTEND, encoder=ENCODER, decoder=DECODER)
    student = build_student(config, LETTERS.size, 20)
    assert (kind == "hybrid") == isinstance(student, HybridStudent)
    with pytest.raises(UserError, match=words) as caught:
        open_search(student, LETTERS, Normaliser(NormaliserConfig()), DecodingOptions(**values))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["ctc", "attention"])
def test_a_file_is_transcribed(kind: str, say: Callable[..., Any]) -> None:
    recogniser = make(kind)
    transcript = recogniser.transcribe_samples(say("abc abc"))
    assert transcript.tokens
    assert all(0 <= each.start <= each.end for each in transcript.words)
