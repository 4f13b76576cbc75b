from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.decoding.options import DecodingOptions, read_options
from retort.decoding.recogniser import Recogniser
from retort.evaluation.evaluate import evaluate
from retort.tuning import lm_weights as tuning
from retort.tuning.lm_weights import Lists, Tuned, tune
from tiny_lms import TableLM


def utterance(*candidates: Sequence[float], reference: int = 10, speaker: str = "s") -> dict[str, Any]:
    return {"speaker": speaker, "reference": reference, "candidates": [list(each) for each in candidates]}


def test_errors_are_those_of_the_candidate_that_the_weights_choose() -> None:
    lists = Lists(
        [
            utterance((-1.0, -10.0, 4, 2), (-2.0, -5.0, 4, 0)),
            utterance((-1.0, -3.0, 2, 1), (-1.5, -3.0, 6, 3), (-9.0, 0.0, 1, 5)),
            utterance(reference=7),
        ]
    )
    assert lists.errors(0.0, 0.0).tolist() == [2, 1, 7]
    assert lists.errors(0.3, 0.0).tolist() == [0, 1, 7]
    assert lists.errors(0.3, 0.5).tolist() == [0, 3, 7]
    assert lists.errors(9.0, 0.0).tolist() == [0, 5, 7]
    assert lists.rate(0.3, 0.0) == 8 / 27


def test_a_known_optimum_of_rescoring_is_found() -> None:
    """The right candidate wins between a rescore weight of 1 and 1.2, whatever the length, or else no errors fall."""
    above = utterance((0.0, 0.0, 3, 4), (-1.025, 1.0, 3, 0))
    below = utterance((0.0, 0.0, 3, 0), (-1.175, 1.0, 3, 4))
    found = Lists([above, below]).best(0.4, True, True)
    assert (found.rescore_weight, found.length_weight, found.rate) == (1.05, 0.0, 0.0)
    longer = utterance((0.0, 0.0, 2, 4), (-1.1, 0.0, 3, 0))
    found = Lists([longer]).best(0.4, True, True)
    assert (found.lm_weight, found.rescore_weight, found.length_weight) == (0.4, 0.0, 1.25)
    assert Lists([above]).best(0.0, False, False).rate == 0.4


@pytest.fixture
def lm(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A folder that holds a language model over the recogniser's pieces."""
    folder = tmp_path / "lm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    table = TableLM(recogniser.tokenizer)
    monkeypatch.setattr("retort.decoding.fusion.open_causal_lm", lambda name, device: table)
    monkeypatch.setattr("retort.decoding.rescoring.is_causal_lm", lambda name: name == str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("optimum", "found", "warned"),
    [(0.64, 0.65, ""), (0.0, 0.0, "is 0"), (1.48, 1.5, ""), (9.0, 2.0, "edge")],
)
def test_a_known_optimum_of_fusion_is_found(
    optimum: float,
    found: float,
    warned: str,
    recogniser: Recogniser,
    lm: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def lists(self: object, weight: float, measure: str) -> Lists:
        asked.append(weight)
        return Lists([utterance((0.0, 0.0, 1, round(1000 * abs(weight - optimum))), reference=10_000)])

    monkeypatch.setattr("retort.tuning.lm_weights._Decoder.lists", lists)
    options = DecodingOptions(beam=2, lm=lm)
    tuned = tune(recogniser, str(corpus / "validation"), tmp_path, options, lambda *_: None)
    assert tuned.options.lm_weight == pytest.approx(found)
    assert len(asked) == len(set(asked)) == len(tuned.tried) <= 16
    assert all(warned in each for each in tuned.warnings)
    assert len(tuned.warnings) == bool(warned)
    assert (tuned.file.parent / "lm_weight.png").stat().st_size > 1000


class TestWhole:
    @pytest.fixture
    def tuned(self, corpus: Path, recogniser: Recogniser, lm: str, tmp_path: Path) -> Callable[..., Tuned]:
        def run(rescore: str = lm, fusion: str = lm) -> Tuned:
            options = DecodingOptions(beam=4, lm=fusion, rescore=rescore)
            return tune(recogniser, str(corpus / "validation"), tmp_path, options, lambda *_: None, "cer")

        return run

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = replace(tuning.FUSION, first=(0.0, 1.0), largest=1.0, fine=(-0.5,))
        monkeypatch.setattr(tuning, "FUSION", few)
        monkeypatch.setattr(tuning, "RESCORE_WEIGHTS", np.array([0.0, 0.5, 1.0]))
        monkeypatch.setattr(tuning, "LENGTH_WEIGHTS", np.array([-1.0, 0.0, 1.0]))

    def test_evaluating_with_the_weights_gives_the_rate_that_was_reported(
        self, tuned: Callable[..., Tuned], recogniser: Recogniser, corpus: Path, tmp_path: Path
    ) -> None:
        found = tuned()
        assert found.best.rate < found.alone
        assert {each.lm_weight for each in found.tried} >= {0.0, 1.0}
        options = read_options(found.file)
        assert options == found.options
        scored = evaluate(recogniser, str(corpus / "validation"), tmp_path, lambda *_: None, options)
        assert scored.score.cer == found.best.rate
        plain = DecodingOptions(beam=4)
        alone = evaluate(recogniser, str(corpus / "validation"), tmp_path, lambda *_: None, plain)
        assert alone.score.cer == found.alone
        reported = json.loads(found.file.read_text())["tuning"]
        assert reported["rate"] == found.best.rate
        assert reported["measure"] == "cer"
        assert len(reported["tried"]) == len(found.tried)

    def test_what_was_decoded_is_not_decoded_again(
        self, tuned: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch, lm: str
    ) -> None:
        found = tuned()
        parts = [path.name for path in found.file.parent.glob("lists-*.json")]
        assert len(parts) == len(found.tried)
        (found.file.parent / "lists-1.json").write_text("{")
        decoded = []
        decode = tuning._Decoder._decode

        def counted(self: tuning._Decoder, weight: float) -> list[dict[str, Any]]:
            decoded.append(weight)
            return decode(self, weight)

        monkeypatch.setattr(tuning._Decoder, "_decode", counted)
        assert tuned() == found
        assert decoded == [1.0]
        (Path(lm) / "config.json").write_text("{ }")
        assert tuned() == found
        assert decoded[1:] == [each for each in (0.0, 1.0, 0.5) if each in {t.lm_weight for t in found.tried}]

    def test_rescoring_alone_decodes_once(self, tuned: Callable[..., Tuned]) -> None:
        found = tuned(fusion="")
        assert [each.lm_weight for each in found.tried] == [0.0]
        assert [path.name for path in found.file.parent.glob("lists-*")] == ["lists-0.json"]
        assert "lm" not in json.loads(found.file.read_text())
        assert (found.file.parent / "length_weight.png").is_file()

    def test_a_model_that_cannot_be_used_is_reported_before_decoding(
        self, tuned: Callable[..., Tuned], monkeypatch: pytest.MonkeyPatch, tone_bert: Path
    ) -> None:
        monkeypatch.setattr("retort.tuning.lm_weights.recognise", lambda *_: pytest.fail("decoded"))
        with pytest.raises(UserError, match="without a language-modelling head"):
            tuned(rescore=str(tone_bert))
        with pytest.raises(UserError, match="nothing to tune"):
            tuned(rescore="", fusion="")
