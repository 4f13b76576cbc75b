from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retort.decoding.options import GREEDY, DecodingOptions, read_options
from retort.decoding.recogniser import Recogniser
from retort.evaluation import scales as module
from retort.evaluation.scales import Scales, TunedScale, tune_scale


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
    found = Scales(tried)
    assert (found.best, found.at_the_edge) == (best, edge)


class TestTuning:
    """On rates that are a function of the scale; what really decodes is tested with the verb."""

    @pytest.fixture
    def tune(
        self, recogniser: Recogniser, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[TunedScale, list[float]]]:
        (tmp_path / "lm").mkdir()
        monkeypatch.setattr(recogniser, "opened", lambda options: None)

        def run(best: float, measure: str = "") -> tuple[TunedScale, list[float]]:
            asked: list[float] = []

            def rate(_: object, cuts: object, options: DecodingOptions, *rest: object) -> float:
                asked.append(options.acoustic_scale)
                assert options.graph == (str(tmp_path / "lm") if options.acoustic_scale else "")
                return abs(options.acoustic_scale - best) / 10 if options.acoustic_scale else 0.9

            monkeypatch.setattr(module, "_rate", rate)
            options = DecodingOptions(graph=str(tmp_path / "lm"), acoustic_scale=3.0)
            source = str(corpus / "validation")
            return tune_scale(recogniser, source, tmp_path, options, lambda *_: None, measure), asked

        return run

    def test_the_best_of_those_that_are_tried(
        self, tune: Callable[..., tuple[TunedScale, list[float]]]
    ) -> None:
        found, asked = tune(0.72)
        assert sorted(asked) == [0.0, *module.FIRST]
        assert (found.options.acoustic_scale, found.alone, found.measure) == (0.7, 0.9, "wer")
        assert not found.scales.at_the_edge
        assert read_options(found.file) == found.options
        assert json.loads(found.file.read_text())["tuning"]["rate"] == pytest.approx(0.002)

    def test_beyond_the_edges(self, tune: Callable[..., tuple[TunedScale, list[float]]]) -> None:
        found, asked = tune(4.0)
        assert set(asked) - {0.0, *module.FIRST} == {2.8, 4.0, 5.7}
        assert found.options.acoustic_scale == 4.0

    def test_beyond_the_lower_edge_until_it_is_enough(
        self, tune: Callable[..., tuple[TunedScale, list[float]]]
    ) -> None:
        found, asked = tune(0.0)
        assert found.scales.at_the_edge
        assert min(set(asked) - {0.0}) == found.options.acoustic_scale >= module.SMALLEST

    def test_what_was_tried_is_kept(self, tune: Callable[..., tuple[TunedScale, list[float]]]) -> None:
        first, _ = tune(1.0)
        again, asked = tune(1.0)
        assert (asked, again) == ([], first)
        _, asked = tune(1.0, "cer")
        assert GREEDY.acoustic_scale in asked
        first.file.with_name("scales.json").write_text("[")
        assert tune(1.0)[1]
