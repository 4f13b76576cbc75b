from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.common.errors import UserError
from retort.evaluation import alignment, intervals, read_score, score, score_from_dict, score_to_dict
from retort.evaluation.scoring import Counts, Score, count_errors

WORDS = st.lists(st.text("abé你", min_size=1, max_size=4), max_size=12).map(" ".join)
SPOKEN = WORDS.filter(bool)


def spaced(text: str) -> str:
    """As jiwer has to read it for the one Chinese character to be a word."""
    return text.replace("你", " 你 ")


def two_utterances() -> Score:
    return score(
        {"a-1": "THE OLD CAPTAIN", "b-1": "GREEN BOATS"},
        {"a-1": "THE COLD CAPTAIN SOLD", "b-1": "BOATS"},
        {"a-1": "a", "b-1": "b"},
        seconds=4.0,
        decoding_seconds=1.0,
    )


@given(SPOKEN, WORDS)
@settings(max_examples=200, deadline=None)
def test_rates_equal_jiwer(reference: str, hypothesis: str) -> None:
    result = score({"u": reference}, {"u": hypothesis})
    assert result.wer == pytest.approx(jiwer.wer(spaced(reference), spaced(hypothesis)))
    assert result.cer == pytest.approx(jiwer.cer(reference, hypothesis))


@given(st.lists(st.tuples(SPOKEN, WORDS), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_totals_equal_jiwer_over_a_test_set(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs))
    result = score(
        {str(index): text for index, text in enumerate(references)},
        {str(index): text for index, text in enumerate(hypotheses)},
    )
    assert result.wer == pytest.approx(jiwer.wer([*map(spaced, references)], [*map(spaced, hypotheses)]))
    assert result.cer == pytest.approx(jiwer.cer(references, hypotheses))


@given(st.text("ab ", max_size=30), st.text("ab ", max_size=30))
@settings(max_examples=100, deadline=None)
def test_counts_balance(reference: str, hypothesis: str) -> None:
    counts = count_errors(reference, hypothesis)
    hits = counts.reference - counts.substitutions - counts.deletions
    assert counts.reference == len(reference)
    assert hits + counts.substitutions + counts.insertions == len(hypothesis)
    assert hits >= 0


def test_every_kind_of_error_is_counted() -> None:
    result = two_utterances()
    assert [utterance.words for utterance in result.utterances] == [Counts(3, 1, 0, 1), Counts(2, 0, 1, 0)]
    assert result.words == Counts(5, 1, 1, 1)
    assert result.wer == 3 / 5
    assert result.utterances[1].characters == Counts(11, 0, 6, 0)
    assert result.speakers == ["a", "b"]
    assert result.real_time_factor == 0.25


def test_spaces_count_as_characters_where_there_are_any() -> None:
    assert score({"u": "ab cd"}, {"u": "abcd"}).characters == Counts(5, 0, 1, 0)
    assert score({"u": "今天好"}, {"u": "今天"}).characters == Counts(3, 0, 1, 0)
    assert score({"u": "今天好"}, {"u": "今天"}).words == Counts(3, 0, 1, 0)


def test_a_missing_hypothesis_is_deleted_whole_and_listed() -> None:
    result = score({"u": "one two", "v": "three"}, {"v": "three"})
    assert result.missing == ["u"]
    assert result.words == Counts(3, 0, 2, 0)
    assert result.characters == Counts(12, 0, 7, 0)


def test_an_empty_reference_counts_insertions() -> None:
    result = score({"u": "", "v": "one"}, {"u": "two words", "v": "one"})
    assert result.words == Counts(1, 0, 0, 2)
    assert result.wer == 2.0
    assert Counts(0, 0, 0, 3).rate == 3.0
    assert Counts().rate == 0.0


def test_an_utterance_without_speaker_is_one_of_its_own() -> None:
    assert score({"u": "a", "v": "b"}, {}, {"u": "x"}).speakers == ["x", "v"]


def test_a_hypothesis_of_an_unknown_utterance_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="2 of 3 hypotheses have no reference, the first is v"):
        score({"u": "a"}, {"u": "a", "v": "b", "w": "c"})
    with pytest.raises(UserError, match="no reference to score against"):
        score({}, {})


def test_long_utterances() -> None:
    generator = random.Random(1)
    text = " ".join(generator.choice(["boat", "lamp", "green", "red"]) for _ in range(1500))
    result = score({"u": text}, {"u": text.replace("red", "rad", 20) + " more"})
    assert result.words == Counts(1500, 20, 0, 1)
    assert result.characters == Counts(len(text), 20, 0, 5)


def test_alignment_shows_both_sides() -> None:
    assert alignment("the old captain", "the captain sold") == [
        ("the", "the"),
        ("old", ""),
        ("captain", "captain"),
        ("", "sold"),
    ]
    assert alignment("今天", "今日", unit="characters") == [("今", "今"), ("天", "日")]
    assert alignment("", "a b") == [("", "a"), ("", "b")]
    assert alignment("", "") == []
    with pytest.raises(ValueError, match="phones"):
        alignment("a", "b", unit="phones")


@given(WORDS, WORDS)
@settings(max_examples=100, deadline=None)
def test_alignment_has_as_many_errors_as_counted(reference: str, hypothesis: str) -> None:
    pairs, output, words = (
        alignment(reference, hypothesis),
        spaced(reference).split(),
        spaced(hypothesis).split(),
    )
    assert sum(first != second for first, second in pairs) == count_errors(output, words).errors
    assert [first for first, _ in pairs if first] == output
    assert [second for _, second in pairs if second] == words


def test_score_file_round_trip(tmp_path: Path) -> None:
    result = two_utterances()
    content = score_to_dict(result, intervals(result, replicates=200))
    path = tmp_path / "score.json"
    path.write_text(json.dumps(content))
    assert read_score(path) == result
    assert content["wer"]["rate"] == 0.6
    assert content["wer"]["low"] <= 0.6 <= content["wer"]["high"]
    assert {"substitutions": 1, "deletions": 1, "insertions": 1, "reference": 5}.items() <= content[
        "wer"
    ].items()
    assert (content["utterances"], content["speakers"], content["seconds"]) == (2, 2, 4.0)
    assert content["real_time_factor"] == 0.25
    assert content["interval"] == {"level": 0.95, "replicates": 200, "resampled": "speakers"}
    assert content["per_utterance"][0]["id"] == "a-1"
    assert content["per_utterance"][0]["words"]["substitutions"] == 1


def test_score_without_durations_round_trip() -> None:
    result = score({"u": "a b"}, {})
    again = score_from_dict(score_to_dict(result, intervals(result, replicates=50)), "here")
    assert again == result
    assert again.seconds is None
    assert again.missing == ["u"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("per_utterance"), r"score.json: not a score file \(no 'per_utterance'\)"),
        (lambda c: c["per_utterance"][0].pop("words"), r"not a score file \(no 'words'\)"),
        (lambda c: c["per_utterance"][0]["words"].update(deletions=-1), "-1 is not a count"),
        (lambda c: c["per_utterance"][0]["words"].update(deletions=0.5), "0.5 is not a count"),
        (
            lambda c: c["per_utterance"][0]["words"].update(deletions=9),
            "more errors than the reference has units",
        ),
        (lambda c: c["per_utterance"].pop(), "its totals differ from those of its utterances"),
        (lambda c: c["per_utterance"][1].update(id="a-1"), "its totals differ from those of its utterances"),
        (lambda c: c["wer"].update(insertions=7), "its totals differ from those of its utterances"),
        (lambda c: c.update(seconds="long"), "could not convert"),
        (lambda c: c.update(per_utterance=5), "not iterable"),
    ],
)
def test_a_broken_score_gets_one_line(damage: Any, message: str) -> None:
    result = two_utterances()
    content = json.loads(json.dumps(score_to_dict(result, intervals(result, replicates=50))))
    damage(content)
    with pytest.raises(UserError, match=message) as caught:
        score_from_dict(content, "score.json")
    assert "\n" not in str(caught.value)
    assert "retort evaluate" in caught.value.remedy


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"null", None])
def test_a_file_that_is_no_score_gets_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "score.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"score.json: (not a score file|cannot be read)") as caught:
        read_score(path)
    assert "\n" not in str(caught.value)
