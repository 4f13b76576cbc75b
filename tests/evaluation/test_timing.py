from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

from retort.common.errors import UserError
from retort.corpora.cuts import make_cut, open_recording
from retort.evaluation.timing import read_word_ends, word_timing


@pytest.fixture
def output(tmp_path: Path):  # type: ignore[no-untyped-def]
    """`said(text, ends, symbols=None)`: a cut whose words end at these seconds."""
    import soundfile

    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000 * 4), 16000)

    def make(text: str, ends: list[float], name: str = "u", symbols: list[str] | None = None) -> Cut:
        cut = make_cut(name, open_recording(name, path), text, "s")
        starts = [0.0, *ends[:-1]]
        items = zip(symbols or text.split(), starts, ends)
        cut.supervisions[0].alignment = {
            "word": [AlignmentItem(word, start, round(end - start, 4)) for word, start, end in items]
        }
        return cut

    return make


def lower(text: str) -> str:
    return " ".join("".join(letter for letter in text.lower() if letter not in ".-").split())


def test_words_that_agree_are_timed(output) -> None:  # type: ignore[no-untyped-def]
    cut = output("the old boat was late", [0.2, 0.5, 1.0, 1.3, 2.0])
    # "old" is missing, "was" is wrong, "so" too much: the, boat and late are left.
    recognised = {"u": [("the", 0.25), ("boat", 0.9), ("so", 1.2), ("is", 1.31), ("late", 2.4)]}
    timing = word_timing([cut], recognised, lower)
    assert timing.errors == pytest.approx([0.05, -0.1, 0.4])
    assert timing.words == 5
    assert timing.median == pytest.approx(0.1)
    assert timing.delay == pytest.approx(0.05)


def test_a_repeated_word_is_matched_in_order(output) -> None:  # type: ignore[no-untyped-def]
    cut = output("red red boats", [0.4, 0.8, 1.4])
    timing = word_timing([cut], {"u": [("red", 0.5), ("red", 0.9), ("boats", 1.5)]}, lower)
    assert timing.errors == pytest.approx([0.1, 0.1, 0.1])


def test_both_sides_are_normalised(output) -> None:  # type: ignore[no-untyped-def]
    cut = output("The OLD boat.", [0.2, 0.5, 1.0])
    timing = word_timing([cut], {"u": [("THE", 0.2), ("old.", 0.6), ("-", 0.7), ("Boat", 1.0)]}, lower)
    assert timing.errors == pytest.approx([0.0, 0.1, 0.0])


def test_a_symbol_of_two_words_has_one_end(output) -> None:  # type: ignore[no-untyped-def]
    cut = output("in the boat", [0.4, 1.0], symbols=["in the", "boat"])
    timing = word_timing([cut], {"u": [("in", 0.1), ("the", 0.5), ("boat", 1.0)]}, lower)
    assert timing.errors == pytest.approx([0.1, 0.0])
    assert timing.words == 3


def test_utterances_without_boundaries_are_left_out_and_counted(output) -> None:  # type: ignore[no-untyped-def]
    bare = output("a boat", [0.2, 0.5], "bare")
    bare.supervisions[0].alignment = None
    other = output("a boat", [0.2, 0.5], "other", symbols=["a", "lamp"])
    good = output("a boat", [0.2, 0.5], "good")
    words = [("a", 0.2), ("boat", 0.6)]
    timing = word_timing([bare, other, good], dict.fromkeys(("bare", "other", "good"), words), lower)
    assert timing.errors == pytest.approx([0.0, 0.1])
    assert (timing.words, timing.unknown) == (2, 2)


def test_nothing_recognised_has_no_median(output) -> None:  # type: ignore[no-untyped-def]
    timing = word_timing([output("a boat", [0.2, 0.5])], {}, lower)
    assert timing.errors.shape == (0,)
    assert timing.words == 2
    assert timing.median is None
    assert timing.delay is None


def test_ends_are_read_from_what_evaluate_wrote(experiments: Path) -> None:
    (path,) = experiments.glob("taught/evaluation/*/hyp.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ends = read_word_ends(path)
    assert ends.keys() == {line["id"] for line in lines}
    assert sum(map(len, ends.values())) > 0
    assert all(ends[line["id"]] == [(text, end) for text, _, end in line["words"]] for line in lines)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"id": "u"}\n', "no 'words'"),
        ("{\n", "with times"),
        ('{"id": "u", "words": [["a", 1]]}\n', "unpack"),
    ],
)
def test_a_file_without_times_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "hyp.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_word_ends(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_word_ends(tmp_path / "hyp.jsonl")
