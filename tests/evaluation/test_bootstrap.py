from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.evaluation import bootstrap
from retort.evaluation.bootstrap import SEED, compare, interval, intervals, pooled, share_of_gain
from retort.evaluation.scoring import UNDEFINED, Counts, Score, UtteranceScore


def make_score(errors: NDArray[np.int64], words: int = 20, each: int = 2) -> Score:
    """Utterances of `words` words; `each` of them a speaker."""
    utterances = [
        UtteranceScore(f"u{i}", f"s{i // each}", Counts(words, int(e)), Counts(5 * words, int(e)))
        for i, e in enumerate(errors)
    ]
    return Score(utterances)


def draw_errors(
    generator: np.random.Generator, speakers: int, mean: float = 0.2, words: int = 20, each: int = 2
) -> NDArray[np.int64]:
    """Errors of speakers who differ: a beta-distributed rate of mean `mean` a speaker."""
    rates = np.repeat(generator.beta(8 * mean, 8 * (1 - mean), speakers), each)
    return generator.binomial(words, rates)


def test_equals_a_slow_loop() -> None:
    errors = [3, 0, 5, 2, 1, 7]
    lengths = [10, 4, 9, 8, 3, 12]
    speakers = ["x", "y", "x", "z", "y", "w"]
    found = interval([Counts(n, e) for n, e in zip(lengths, errors)], speakers, replicates=300)
    names = sorted(set(speakers))
    generator = np.random.default_rng(SEED)
    rates = []
    for drawn in generator.integers(len(names), size=(300, len(names))):
        total = length = 0
        for block in drawn:
            for error, words, speaker in zip(errors, lengths, speakers):
                if speaker == names[block]:
                    total += error
                    length += words
        rates.append(total / length)
    assert found.rate == sum(errors) / sum(lengths)
    assert (found.low, found.high) == pytest.approx((np.percentile(rates, 2.5), np.percentile(rates, 97.5)))


def test_blocks_of_replicates_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    result = make_score(draw_errors(np.random.default_rng(1), 30))
    whole = intervals(result, replicates=500)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 7 * 30)
    assert intervals(result, replicates=500) == whole


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        result = make_score(draw_errors(generator, speakers=40))
        found = intervals(result, replicates=400, seed=trial)["wer"]
        covered += found.low <= 0.2 <= found.high
    assert 0.89 <= covered / 300 <= 0.98


def test_speakers_who_differ_widen_the_interval() -> None:
    errors = np.repeat([0, 8] * 10, 10)
    over_speakers = intervals(make_score(errors, each=10))["wer"]
    over_utterances = intervals(make_score(errors, each=1))["wer"]
    assert over_speakers.high - over_speakers.low > 2 * (over_utterances.high - over_utterances.low)


def test_one_speaker_falls_back_to_utterances_and_says_so() -> None:
    result = make_score(np.array([0, 1, 2, 3, 4, 5]), each=6)
    found = intervals(result)["wer"]
    assert found.resampled == "utterances"
    assert "only one speaker" in found.note
    assert found.low < found.rate < found.high
    several = intervals(make_score(np.array([0, 1, 2, 3]), each=2))["wer"]
    assert (several.resampled, several.note) == ("speakers", "")
    assert "only one speaker" in compare(result, result).note


def test_one_utterance_and_empty_references() -> None:
    found = interval([Counts(4, 1)], ["s"])
    assert (found.low, found.rate, found.high) == (0.25, 0.25, 0.25)
    nothing = interval([Counts(0), Counts(0, insertions=3)], ["s", "t"])
    assert (nothing.rate_text, nothing.range_text) == (UNDEFINED, "")
    assert "no word" in nothing.note
    with pytest.raises(ValueError, match="0 utterances"):
        interval([], [])


def test_the_seed_is_fixed() -> None:
    result = make_score(draw_errors(np.random.default_rng(2), 12))
    assert intervals(result) == intervals(result)
    assert intervals(result, seed=1) != intervals(result, seed=2)


def test_a_clear_difference_has_a_small_p_and_the_right_sign() -> None:
    errors = draw_errors(np.random.default_rng(3), 60, mean=0.4)
    better = errors // 2
    found = compare(make_score(errors), make_score(better))
    assert found.p == pytest.approx(2 / 10001)
    assert found.difference == pytest.approx(found.second - found.first)
    assert found.low < found.difference < found.high < 0
    assert (found.utterances, found.speakers, found.resampled) == (120, 60, "speakers")
    back = compare(make_score(better), make_score(errors))
    assert back.difference == pytest.approx(-found.difference)
    assert back.p == found.p


def test_characters_are_compared_on_request() -> None:
    first, second = make_score(np.array([4, 4, 4, 4])), make_score(np.array([2, 2, 2, 2]))
    assert compare(first, second, measure="wer").difference == pytest.approx(-0.1)
    assert compare(first, second, measure="cer").difference == pytest.approx(-0.02)
    with pytest.raises(ValueError, match="per"):
        compare(first, second, measure="per")


def test_equal_systems_have_p_one() -> None:
    result = make_score(draw_errors(np.random.default_rng(4), 10))
    found = compare(result, result)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_p_is_about_uniform_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(6)
    found = []
    for trial in range(300):
        rates = np.repeat(generator.beta(1.6, 6.4, 40), 2)
        first, second = (make_score(generator.binomial(20, rates)) for _ in range(2))
        found.append(compare(first, second, replicates=400, seed=trial).p)
    below = [np.mean(np.array(found) < level) for level in (0.05, 0.25, 0.5, 0.75)]
    assert below == pytest.approx([0.05, 0.25, 0.5, 0.75], abs=0.09)
    assert below[0] < 0.11


def test_p_agrees_with_the_interval() -> None:
    generator = np.random.default_rng(7)
    seen = set()
    for trial in range(80):
        rates = np.repeat(generator.beta(1.6, 6.4, 20), 2)
        first = make_score(generator.binomial(20, rates))
        second = make_score(generator.binomial(20, rates * 0.85))
        comparison = compare(first, second, replicates=999, seed=trial)
        outside = comparison.low > 0 or comparison.high < 0
        if abs(comparison.p - 0.05) > 0.005:
            assert outside == (comparison.p < 0.05)
            seen.add(outside)
    assert seen == {True, False}


def test_a_difference_that_can_be_detected_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(8)
    worse = 0.05

    def pair() -> tuple[Score, Score]:
        rates = np.repeat(generator.beta(2, 8, 40), 2)
        return tuple(
            make_score(generator.binomial(20, each)) for each in (rates, rates + worse * (1 - rates))
        )  # type: ignore[return-value]

    found = [compare(*pair(), replicates=300) for _ in range(200)]
    true = worse * (1 - 0.2)
    detectable = float(np.mean([each.detectable for each in found]))
    shown = float(np.mean([each.p < 0.05 and each.difference > 0 for each in found]))
    expected = 1 - NormalDist().cdf(1.96 - 2.8 * true / detectable)
    assert 0.5 < expected < 0.95
    assert shown == pytest.approx(expected, abs=0.08)


def test_pairing_is_by_utterance_not_by_order() -> None:
    first = make_score(np.array([1, 2, 3, 4, 5, 6]))
    second = make_score(np.array([1, 1, 3, 4, 2, 6]))
    shuffled = Score(second.utterances[::-1])
    assert compare(first, shuffled) == compare(first, second)


def test_pairing_narrows_the_interval() -> None:
    errors = draw_errors(np.random.default_rng(8), 40, mean=0.4)
    better = make_score(np.maximum(errors - 1, 0))
    found = compare(make_score(errors), better)
    alone = intervals(better)["wer"]
    assert found.high - found.low < 0.5 * (alone.high - alone.low)


def test_other_data_in_one_score_is_the_users_mistake() -> None:
    first = make_score(np.array([1, 2, 3, 4, 5, 6]))
    with pytest.raises(UserError, match="2 utterances are only in one score, the first is u4"):
        compare(first, make_score(np.array([1, 2, 3, 4])))
    with pytest.raises(UserError, match="u1 has speaker s0 in one score and s1 in the other"):
        compare(first, make_score(np.array([1, 2, 3, 4, 5, 6]), each=1))
    with pytest.raises(UserError, match="references of u0 differ in length"):
        compare(first, make_score(np.array([1, 2, 3, 4, 5, 6]), words=21))


def test_runs_of_one_system_are_pooled_by_utterance() -> None:
    first, second = make_score(np.array([1, 2, 0, 5])), make_score(np.array([3, 0, 0, 1]))
    second.utterances.reverse()
    found = pooled([first, second])
    assert [utterance.id for utterance in found.utterances] == ["u0", "u1", "u2", "u3"]
    assert [utterance.words.errors for utterance in found.utterances] == [4, 2, 0, 6]
    assert found.wer == pytest.approx((first.wer + second.wer) / 2)
    assert pooled([first]).utterances == first.utterances
    with pytest.raises(UserError, match="only in one score"):
        pooled([first, make_score(np.array([1, 2]))])
    with pytest.raises(ValueError):
        pooled([])


def helped(score: Score, fewer: NDArray[np.int64]) -> Score:
    """So many errors less in each utterance."""
    return make_score(np.array([each.words.errors for each in score.utterances]) - fewer)


class TestShareOfGain:
    def test_equals_a_slow_loop(self) -> None:
        generator = np.random.default_rng(3)
        alone = make_score(draw_errors(generator, 12, mean=0.5))
        first, second = (helped(alone, generator.integers(low, high, 24)) for low, high in ((0, 6), (-1, 3)))
        found = share_of_gain(alone, first, second, replicates=400)
        errors = [[each.words.errors for each in score.utterances] for score in (alone, first, second)]
        blocks = sorted({each.speaker for each in alone.utterances})
        of = [each.speaker for each in alone.utterances]
        ratios = []
        for drawn in np.random.default_rng(SEED).integers(12, size=(400, 12)):
            chosen = [index for block in drawn for index, name in enumerate(of) if name == blocks[block]]
            sums = [sum(system[index] for index in chosen) for system in errors]
            ratios.append((sums[0] - sums[2]) / (sums[0] - sums[1]))
        totals = [sum(system) for system in errors]
        assert found.share == pytest.approx((totals[0] - totals[2]) / (totals[0] - totals[1]))
        assert found.low == pytest.approx(np.quantile(ratios, 0.025, method="lower"))
        assert found.high == pytest.approx(np.quantile(ratios, 0.975, method="higher"))

    def test_half_is_half(self) -> None:
        alone = make_score(np.full(40, 10))
        found = share_of_gain(alone, make_score(np.full(40, 6)), make_score(np.full(40, 8)), measure="cer")
        assert (found.share, found.low, found.high) == (0.5, 0.5, 0.5)

    def test_a_gain_that_may_be_none_has_no_interval(self) -> None:
        alone = make_score(np.full(40, 10))
        unclear = helped(alone, np.tile([5, 5, -4, -4], 10))
        found = share_of_gain(alone, unclear, helped(alone, np.ones(40, np.int64)))
        assert found.share == pytest.approx(2.0)
        assert found.low is None
        assert found.high is None
        for worse in (alone, helped(alone, np.full(40, -1))):
            assert share_of_gain(alone, worse, unclear).share is None

    def test_other_data_is_the_users_mistake(self) -> None:
        alone = make_score(np.full(40, 10))
        with pytest.raises(UserError, match="only in one score"):
            share_of_gain(alone, alone, make_score(np.full(38, 9)))
