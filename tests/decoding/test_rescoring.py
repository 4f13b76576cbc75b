from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_searches import build, fire

from retort.common.errors import UserError
from retort.decoding.cif import beam_fired
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.rescoring import TextRescoringLM, TokenRescoringLM, open_rescoring_lm, rescore
from retort.decoding.token_search import CifSearch
from retort.lm.likelihood import MaskedPlm
from retort.text.tokenizers import CharacterTokenizer
from tiny_lms import TableLM
from tiny_students import unscored

LETTERS = CharacterTokenizer(list("abcdefghij") + ["▁", "k"])


def candidate(text: str, score: float) -> Hypothesis:
    ids = LETTERS.encode(text)
    return Hypothesis(ids, [-0.1] * len(ids), [1.0] * len(ids), score=score)


LISTS = [
    [candidate("ab", -1.0), candidate("abc", -1.5), candidate("", -2.0)],
    [candidate("j", -3.0)],
    [candidate("b a", -0.5), candidate("bb a", -0.6)],
]


def lengths_of(found: list[list[Hypothesis]]) -> list[list[int]]:
    return [[len(each.ids) for each in row] for row in found]


@pytest.mark.parametrize(("weight", "length_weight"), [(0.0, 0.0), (0.4, 0.0), (0.7, 1.3), (0.0, -2.0)])
def test_scores_are_those_of_a_slow_sum(weight: float, length_weight: float) -> None:
    lm = TableLM(LETTERS)
    for given, found in zip(LISTS, rescore(LISTS, TokenRescoringLM(lm), weight, length_weight)):
        expected = []
        for each in given:
            ids = each.ids
            lm_score = float(lm.score([ids])[0].sum())
            expected.append((each.score + weight * lm_score + length_weight * len(ids), ids))
        expected.sort(key=lambda pair: -pair[0])
        assert [each.ids for each in found] == [ids for _, ids in expected]
        assert [each.score for each in found] == pytest.approx([score for score, _ in expected])


def test_a_length_weight_turns_the_order() -> None:
    lm = TokenRescoringLM(TableLM(LETTERS))
    assert lengths_of(rescore(LISTS, lm, 0.0, 0.0)) == lengths_of(LISTS)
    assert lengths_of(rescore(LISTS, lm, 0.0, 5.0)) == [[3, 2, 0], [1], [4, 3]]
    assert lengths_of(rescore(LISTS, lm, 0.0, -5.0)) == [[0, 2, 3], [1], [3, 4]]


def test_all_lists_are_scored_in_one_call() -> None:
    class Counting:
        parameters = 0
        calls = 0

        def score(self, sentences: Any) -> list[float]:
            self.calls += 1
            return [0.0] * len(sentences)

    lm = Counting()
    assert rescore(LISTS, lm, 1.0, 0.0) == LISTS
    assert lm.calls == 1


def test_a_masked_model_reads_the_text_in_its_case(tone_masked: Path) -> None:
    plm = MaskedPlm(str(tone_masked))
    upper = CharacterTokenizer(list("▁ABCDEFGH"))
    texts = ["AB CD", "", "H", "AB CD"]
    found = TextRescoringLM(plm, upper, "lower").score([upper.encode(text) for text in texts])
    assert found == pytest.approx(plm.score([text.lower() for text in texts]))
    assert found[0] == found[3] < 0.0 == found[1]
    assert TextRescoringLM(plm, upper, "keep").score([upper.encode("AB")]) == pytest.approx(plm.score(["AB"]))
    assert plm.score(["AB"]) != pytest.approx(plm.score(["ab"]))


def test_the_kind_is_detected_from_the_checkpoint(tone_masked: Path, tone_gpt: Path, tone_bert: Path) -> None:
    def opened(name: Path, kind: str = "auto") -> str:
        options = DecodingOptions(beam=2, rescore=str(name), rescore_kind=kind)
        lm = open_rescoring_lm(options, LETTERS, "cpu")
        assert isinstance(lm, TextRescoringLM)
        assert lm.parameters > 1000
        return type(lm.plm).__name__

    assert opened(tone_masked) == opened(tone_masked, "masked") == "MaskedPlm"
    assert opened(tone_gpt) == opened(tone_gpt, "causal") == "CausalPlm"
    for name, kind, words in (
        (tone_bert, "auto", "without a language-modelling head"),
        (tone_bert, "masked", "without a masked-LM head"),
        (tone_bert, "causal", "without a causal-LM head"),
        (tone_masked, "causal", "attends to later tokens"),
        (tone_gpt, "masked", "."),
        (Path("/nowhere"), "auto", "no such folder"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            opened(name, kind)
        assert str(name) in str(caught.value)
        assert "\n" not in str(caught.value)


class TestSearch:
    @pytest.fixture
    def lm(self, recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> TableLM:
        """Is in the folder `lm`, over the recogniser's pieces."""
        lm = TableLM(recogniser.tokenizer)
        self.opened = 0
        monkeypatch.setattr(recogniser, "_opened", None)

        def open_it(folder: str, device: torch.device | str) -> TableLM:
            self.opened += 1
            return lm

        monkeypatch.setattr("retort.decoding.fusion.open_causal_lm", open_it)
        monkeypatch.setattr("retort.decoding.rescoring.is_causal_lm", lambda name: name == "lm")
        return lm

    def test_fusion_then_rescoring(self, recogniser: Recogniser, lm: TableLM) -> None:
        features = [torch.randn(frames, 20) for frames in (90, 130)]
        fused = DecodingOptions(beam=4, lm="lm", lm_weight=0.5)
        both = DecodingOptions(
            beam=4, lm="lm", lm_weight=0.5, rescore="lm", rescore_weight=0.8, length_weight=0.5
        )
        first = recogniser.search(features, fused)
        assert first != recogniser.search(features, DecodingOptions(beam=4))
        expected = rescore(recogniser.search(features, fused), TokenRescoringLM(lm), 0.8, 0.5)
        assert recogniser.search(features, both) == expected
        assert recogniser.opened(both).parameters == {
            "student": sum(each.numel() for each in recogniser.student.parameters()),
            "lm": lm.parameters,
            "rescore": lm.parameters,
        }

    def test_a_model_is_opened_once_for_all_weights(self, recogniser: Recogniser, lm: TableLM) -> None:
        searches = []
        for weight in (0.1, 0.1, 0.2):
            searches.append(recogniser.opened(DecodingOptions(beam=2, lm="lm", lm_weight=weight)))
        assert self.opened == 1
        assert searches[0] is searches[1] is not searches[2]
        assert searches[2].scorer is not None
        assert searches[2].scorer.weight == 0.2

    def test_greedy_decoding_with_a_language_model(self, recogniser: Recogniser, lm: TableLM) -> None:
        features = [torch.randn(90, 20)]
        plain = recogniser.search(features)
        assert recogniser.search(features, DecodingOptions(lm="lm", lm_weight=9.0)) != plain
        silent = recogniser.search(features, DecodingOptions(lm="lm", lm_weight=0.0))
        assert [unscored(each[0]) for each in silent] == [unscored(each[0]) for each in plain]

    def test_transcribing_a_file(self, recogniser: Recogniser, lm: TableLM, say: Callable[..., Any]) -> None:
        options = DecodingOptions(beam=3, nbest=3, rescore="lm", rescore_weight=2.0)
        plain = recogniser.search([recogniser._features(say("abc"))], DecodingOptions(beam=3, nbest=3))
        found = recogniser._nbest([say("abc")], 30.0, "x", options)
        assert sorted(each.score for each in found) != sorted(each.score for each in plain[0])
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_options_choose_the_search() -> None:
    student, fired = build(16), fire([5, 3])
    greedily = CifSearch(student, LETTERS, DecodingOptions()).fired(fired)
    assert [len(each) for each in greedily] == [1, 1]
    assert [each[0].score for each in greedily] == [sum(each[0].log_probs) for each in greedily]
    assert CifSearch(student, LETTERS, DecodingOptions(beam=4)).fired(fired) == beam_fired(student, fired, 4)
