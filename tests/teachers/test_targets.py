from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.teachers import MaskedLMTeacher
from retort.teachers.masked_lm import MaskedLMConfig
from retort.teachers.targets import TeacherTargets, token_targets, utterance_targets
from retort.teachers.teacher import TeacherOutput
from retort.text.tokenizers import UNKNOWN, BpeTokenizer, Piece

DIM = 5


def characters(text: str) -> list[Piece]:
    return [Piece(4, index, index + 1) for index in range(len(text))]


def reading_of(text: str, spans: list[tuple[int, int]], seed: int = 0) -> TeacherOutput:
    generator = torch.Generator().manual_seed(seed)
    return TeacherOutput(torch.randn(len(spans) + 2, DIM, generator=generator), spans, text)


def by_loop(readings: list[TeacherOutput], pieces: list[list[Piece]]) -> TeacherTargets:
    """The definition, position by position."""
    longest = max(map(len, pieces)) + 1
    vectors = torch.zeros(len(readings), longest, DIM)
    valid = torch.zeros(len(readings), longest, dtype=torch.bool)
    sources = torch.zeros(len(readings), longest, 2, dtype=torch.int64)
    offsets: dict[str, int] = {}
    count = 0
    for b, (reading, own) in enumerate(zip(readings, pieces)):
        if reading.text not in offsets:
            offsets[reading.text] = count
            count += len(reading.spans) + 1
        first = offsets[reading.text]
        for n, piece in enumerate(own):
            hits = [
                index
                for index, (start, end) in enumerate(reading.spans)
                if max(start, piece.start) < min(end, piece.end)
            ]
            if hits:
                vectors[b, n] = torch.stack([reading.vectors[1 + index] for index in hits]).mean(0)
                valid[b, n] = True
                sources[b, n] = torch.tensor([first + hits[0], first + hits[-1] + 1])
        n = len(own)
        vectors[b, n], valid[b, n] = reading.vectors[-1], True
        sources[b, n] = first + len(reading.spans) + torch.tensor([0, 1])
    return TeacherTargets(vectors, valid, sources)


@st.composite
def cut(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Ordered spans, with gaps, inside a text of this length."""
    points = sorted(draw(st.sets(st.integers(0, length), max_size=length + 1)))
    spans = list(pairwise(points))
    return [span for span in spans if draw(st.booleans())]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_as_the_loop(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(["", "a", "a cat", "so it goes on"]), min_size=1, max_size=5))
    spans = {text: data.draw(cut(len(text))) for text in dict.fromkeys(texts)}
    readings = [reading_of(text, spans[text], len(text)) for text in texts]
    pieces = [[Piece(4, *span) for span in data.draw(cut(len(text)))] for text in texts]
    expected = by_loop(readings, pieces)
    targets = token_targets(readings, texts, pieces)
    assert torch.equal(targets.valid, expected.valid)
    assert torch.equal(targets.sources, expected.sources)
    torch.testing.assert_close(targets.vectors, expected.vectors)


def test_one_piece_takes_exactly_its_vector_and_eos_takes_sep() -> None:
    reading = reading_of("我爱", [(0, 1), (1, 2)])
    targets = token_targets([reading], ["我爱"], [characters("我爱")])
    assert torch.equal(targets.vectors[0], reading.vectors[1:])
    assert targets.valid.all()
    assert targets.sources.tolist() == [[[0, 1], [1, 2], [2, 3]]]
    assert targets.vectors.dtype == torch.float32
    assert targets.sources.dtype == torch.int64


def test_positions_without_a_vector_are_masked() -> None:
    # a space, a character that the teacher dropped, one that it cut off, and padding
    long, short = "a bcd", "a"
    readings = [reading_of(long, [(0, 1), (2, 3)]), reading_of(short, [(0, 1)])]
    targets = token_targets(readings, [long, short], [characters(long), characters(short)])
    assert targets.valid.tolist() == [[True, False, True, False, False, True], [True, True] + [False] * 4]
    assert (targets.sources[~targets.valid] == 0).all()
    assert (targets.vectors[~targets.valid] == 0).all()
    assert (targets.vectors[targets.valid] != 0).all()


def test_the_same_sentence_twice_shares_its_sources_and_others_do_not() -> None:
    texts = ["ab", "cd", "ab"]
    readings = [reading_of(text, [(0, 1), (1, 2)], ord(text[0])) for text in texts]
    targets = token_targets(readings, texts, [characters(text) for text in texts])
    assert torch.equal(targets.sources[0], targets.sources[2])
    intervals = targets.sources[:2].flatten(0, 1)
    assert len(set(map(tuple, intervals.tolist()))) == 6  # pieces and [SEP] of two texts, all apart
    assert sorted(intervals[:, 0].tolist()) == list(range(6))


def test_an_empty_text_is_its_eos() -> None:
    reading = reading_of("", [])
    targets = token_targets([reading], [""], [[]])
    assert targets.valid.tolist() == [[True]]
    assert torch.equal(targets.vectors[0, 0], reading.vectors[-1])


def test_autocast_leaves_the_vectors_alone() -> None:
    reading = reading_of("abcd", [(0, 1), (1, 2), (2, 4)])
    pieces = [[Piece(4, 0, 3), Piece(5, 3, 4)]]
    plain = token_targets([reading], ["abcd"], pieces)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = token_targets([reading], ["abcd"], pieces)
    assert torch.equal(plain.vectors, under.vectors)
    assert under.vectors.dtype == torch.float32


def test_utterances_take_cls() -> None:
    texts = ["ab", "", "ab"]
    readings = [reading_of(text, [(0, 1)] if text else [], len(text)) for text in texts]
    targets = utterance_targets(readings, texts)
    assert torch.equal(targets.vectors, torch.stack([reading.vectors[:1] for reading in readings]))
    assert targets.valid.tolist() == [[True]] * 3
    assert targets.sources.tolist() == [[[0, 1]], [[1, 2]], [[0, 1]]]


def test_what_does_not_belong_together() -> None:
    reading = reading_of("ab", [(0, 2)])
    with pytest.raises(ValueError, match="'ab' was passed for the text 'cd'"):
        token_targets([reading], ["cd"], [characters("cd")])
    with pytest.raises(ValueError, match="1 texts and 2 outputs"):
        utterance_targets([reading, reading], ["ab"])
    with pytest.raises(ValueError, match="0 texts"):
        token_targets([], [], [])
    with pytest.raises(ValueError, match="pieces of 2"):
        token_targets([reading], ["ab"], [[], []])
    with pytest.raises(ValueError, match=r"\(1, 9\)"):
        token_targets([reading], ["ab"], [[Piece(4, 1, 9)]])
    with pytest.raises(ValueError, match="vectors"):
        TeacherOutput(torch.zeros(3, DIM), [], "ab")


def test_english_bpe_in_upper_case(uncased: Path) -> None:
    """Student: BPE in upper case; teacher: word pieces in lower case."""
    text = "UNFAIR WORLD ☃ GAMES"
    lines = ["UNFAIR GAMES", "WORLD GAMES", "UNFAIR WORLD", "GAME", "FAIR", "WORD"]
    pieces = BpeTokenizer.train(lines, 24).pieces(text)
    assert UNKNOWN in {piece.id for piece in pieces}
    assert len(pieces) > 5
    teacher = MaskedLMTeacher(MaskedLMConfig(model=str(uncased)))
    readings = teacher.read([text])
    assert [text[start:end] for start, end in readings[0].spans] == ["UN", "FAIR", "WORLD", "☃", "GAMES"]
    targets = token_targets(readings, [text], [pieces])
    words = [(start, end) for start, end in readings[0].spans]
    for index, piece in enumerate(pieces):
        has_letters = bool(text[piece.start : piece.end].strip())
        assert bool(targets.valid[0, index]) == has_letters
        first, last = targets.sources[0, index].tolist()
        if has_letters:
            assert words[first][0] < piece.end
            assert words[last - 1][1] > piece.start
            torch.testing.assert_close(
                targets.vectors[0, index], readings[0].vectors[1 + first : 1 + last].mean(0)
            )
    assert torch.equal(targets.vectors[0, -1], readings[0].vectors[-1])


def test_characters_of_mixed_mandarin(uncased: Path) -> None:
    text = "我爱PYTHON编程"
    readings = MaskedLMTeacher(MaskedLMConfig(model=str(uncased))).read([text])
    targets = token_targets(readings, [text], [characters(text)])
    assert targets.valid.all()
    first = targets.sources[0, :, 0].tolist()
    assert first == [0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 6]
    assert torch.equal(targets.vectors[0, 2], targets.vectors[0, 3])  # P and Y of one piece
    assert not torch.equal(targets.vectors[0, 3], targets.vectors[0, 4])
