from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.common.errors import UserError
from retort.decoding.options import GREEDY, DecodingOptions, read_options
from retort.decoding.recogniser import Recogniser
from retort.evaluation import scalar_search
from retort.evaluation.scalar_search import LANGUAGE, LENGTH, SCALE, Tried, try_scales
from retort.tuning import scalar as module
from retort.tuning.scalar import TunedScalar, tune_scalar


@pytest.mark.parametrize(
    ("tried", "best", "edge"),
    [
        ({0.1: 0.5, 0.2: 0.4, 0.3: 0.45}, 0.2, False),
        ({0.1: 0.3, 0.2: 0.4, 0.3: 0.45}, 0.1, True),
        ({0.1: 0.5, 0.2: 0.4, 0.3: 0.4}, 0.2, False),
        ({0.1: 0.5, 0.2: 0.4, 0.3: 0.35}, 0.3, True),
        ({0.1: 0.5}, 0.1, False),
    ],
)
def test_the_best_scale_makes_the_fewest_errors(tried: dict[float, float], best: float, edge: bool) -> None:
    found = Tried(tried)
    assert (found.best, found.at_the_edge) == (best, edge)


@settings(max_examples=50)
@given(lowest=st.floats(0.21, 0.69), steepness=st.floats(0.01, 10.0))
def test_a_parabola_over_the_logarithm_is_found_again(lowest: float, steepness: float) -> None:
    tried = {scale: 0.3 + steepness * math.log(scale / lowest) ** 2 for scale in (0.1, 0.2, 0.4, 0.7, 1.0)}
    assert Tried(tried).smoothed == pytest.approx(lowest, rel=0.01)


@settings(max_examples=100)
@given(rates=st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_what_is_smoothed_lies_about_the_best(rates: list[int]) -> None:
    scales = (0.3, 0.4, 0.55, 0.75)
    found = Tried({scale: rate / 10 for scale, rate in zip(scales, rates)})
    place = scales.index(found.best)
    if found.at_the_edge:
        assert found.smoothed == found.best
    else:
        assert scales[place - 1] < found.smoothed < scales[place + 1]


def test_of_two_scales_that_are_equal_but_for_one_error_it_lies_between() -> None:
    assert 0.44 < Tried({0.3: 0.5241, 0.4: 0.5132, 0.55: 0.5125, 0.75: 0.5434}).smoothed < 0.5
    assert Tried({0.4: 0.5}).smoothed == 0.4


class TestTuning:
    """On rates that are a function of the scale; what really decodes is tested with the verb."""

    @pytest.fixture
    def tune(
        self, recogniser: Recogniser, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[TunedScalar, list[float]]]:
        (tmp_path / "lm").mkdir()
        monkeypatch.setattr(recogniser, "opened", lambda options: None)

        def run(best: float, measure: str = "") -> tuple[TunedScalar, list[float]]:
            asked: list[float] = []

            def rate(_: object, cuts: object, options: DecodingOptions, *rest: object) -> float:
                asked.append(options.acoustic_scale)
                assert options.graph == (str(tmp_path / "lm") if options.acoustic_scale else "")
                return abs(options.acoustic_scale - best) / 10 if options.acoustic_scale else 0.9

            monkeypatch.setattr(module, "error_rate", rate)
            options = DecodingOptions(graph=str(tmp_path / "lm"), acoustic_scale=3.0)
            source = str(corpus / "validation")
            return tune_scalar(SCALE, recogniser, source, tmp_path, options, lambda *_: None, measure), asked

        return run

    def test_the_best_of_those_that_are_tried(
        self, tune: Callable[..., tuple[TunedScalar, list[float]]]
    ) -> None:
        found, asked = tune(0.72)
        assert sorted(asked) == [0.0, *SCALE.first]
        assert (found.options.acoustic_scale, found.alone, found.measure) == (0.7, 0.9, "wer")
        assert not found.tried.at_the_edge
        assert read_options(found.file) == found.options
        assert json.loads(found.file.read_text())["tuning"]["rate"] == pytest.approx(0.002)

    def test_beyond_the_edges(self, tune: Callable[..., tuple[TunedScalar, list[float]]]) -> None:
        found, asked = tune(4.0)
        assert set(asked) - {0.0, *SCALE.first} == {2.8, 4.0, 5.7}
        assert found.options.acoustic_scale == 4.0

    def test_beyond_the_lower_edge_until_it_is_enough(
        self, tune: Callable[..., tuple[TunedScalar, list[float]]]
    ) -> None:
        found, asked = tune(0.0)
        assert found.tried.at_the_edge
        assert min(set(asked) - {0.0}) == found.options.acoustic_scale >= SCALE.smallest

    def test_what_was_tried_is_kept(self, tune: Callable[..., tuple[TunedScalar, list[float]]]) -> None:
        first, _ = tune(1.0)
        again, asked = tune(1.0)
        assert (asked, again) == ([], first)
        _, asked = tune(1.0, "cer")
        assert GREEDY.acoustic_scale in asked
        first.file.with_name("rates.json").write_text("[")
        assert tune(1.0)[1]

    def test_length_is_found_with_its_weight_in_the_search(
        self, recogniser: Recogniser, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[DecodingOptions] = []

        def rate(_: object, cuts: object, options: DecodingOptions, *rest: object) -> float:
            asked.append(options)
            return abs(options.length_weight - 2.6)

        monkeypatch.setattr(module, "error_rate", rate)
        monkeypatch.setattr(recogniser, "opened", lambda options: SimpleNamespace(weighs_length=True))
        options = DecodingOptions(beam=4)
        found = tune_scalar(
            LENGTH, recogniser, str(corpus / "validation"), tmp_path, options, lambda *_: None
        )
        assert [each.length_weight for each in asked] == [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
        assert {each.beam for each in asked} == {4}
        assert (found.options.length_weight, found.alone, found.tried.at_the_edge) == (2.5, 2.6, False)
        assert read_options(found.file) == found.options == DecodingOptions(beam=4, length_weight=2.5)

    def test_the_scale_of_a_language_part_is_compared_with_that_of_its_training(
        self, recogniser: Recogniser, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rate(_: object, cuts: object, options: DecodingOptions, *rest: object) -> float:
            return abs((options.language_scale or 0.3) - 0.5)

        monkeypatch.setattr(module, "error_rate", rate)
        monkeypatch.setattr(recogniser, "opened", lambda options: None)
        source = str(corpus / "validation")
        found = tune_scalar(LANGUAGE, recogniser, source, tmp_path, DecodingOptions(), lambda *_: None)
        assert (found.options.language_scale, found.alone) == (0.5, pytest.approx(0.2))
        assert read_options(found.file) == found.options

    def test_of_a_cif_student_there_is_none(
        self, recogniser: Recogniser, corpus: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="nothing to tune"):
            tune_scalar(
                LENGTH,
                recogniser,
                str(corpus / "validation"),
                tmp_path,
                DecodingOptions(beam=4),
                lambda *_: None,
            )


def test_a_hybrid_goes_beyond_the_edges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def rate(_: object, cuts: object, options: DecodingOptions, *rest: object) -> float:
        asked.append(options.acoustic_scale)
        return abs(options.acoustic_scale - 0.8)

    monkeypatch.setattr(scalar_search, "error_rate", rate)
    nothing: Any = None
    found = try_scales(nothing, nothing, [0.4, 0.2, 0.55], lambda *_: None)
    assert asked == [0.2, 0.4, 0.55, 0.78, 1.1]
    assert (found.best, found.at_the_edge) == (0.78, False)
    asked.clear()
    assert try_scales(nothing, nothing, [0.3], lambda *_: None).best == 0.3
    assert asked == [0.3]
