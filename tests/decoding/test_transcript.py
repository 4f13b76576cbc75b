from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.decoding.hypothesis import Hypothesis
from retort.decoding.transcript import TimedText, Transcript, join_transcripts, time_hypothesis
from retort.text.tokenizers import UNKNOWN, BpeTokenizer, CharacterTokenizer, Tokenizer, WordTokenizer

SENTENCES = [
    "the cat sat on the mat",
    "a dog ran over the hill",
    "don't stop now",
    "the moon is over the hill",
]
TOKENIZERS: list[Tokenizer] = [
    CharacterTokenizer.train([*SENTENCES, "今天 天气 好"]),
    BpeTokenizer.train([*SENTENCES, "今天天气好"], 60),
]


def hypothesis_of(ids: list[int], gap: float = 2.0) -> Hypothesis:
    return Hypothesis(
        ids, [-0.1 * (each + 1) for each in range(len(ids))], [gap * (each + 1) for each in range(len(ids))]
    )


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda each: each.kind)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_token_lies_between_two_fires_and_a_word_covers_its_tokens(
    tokenizer: Tokenizer, sentence: str
) -> None:
    ids = tokenizer.encode(sentence)
    hypothesis = hypothesis_of(ids)
    transcript = time_hypothesis(hypothesis, tokenizer, 0.04, offset=10.0, duration=60.0)
    assert transcript.text == sentence
    assert len(transcript.tokens) == len(ids)
    for index, token in enumerate(transcript.tokens):
        assert token.start == pytest.approx(10.0 + 0.08 * index)
        assert token.end == pytest.approx(10.0 + 0.08 * (index + 1))
        assert token.confidence == pytest.approx(math.exp(-0.1 * (index + 1)))
    assert [word.text for word in transcript.words] == sentence.split()
    for word, spoken in zip(transcript.words, tokenizer.words(ids)):
        assert word.start == transcript.tokens[spoken.first].start
        assert word.end == transcript.tokens[spoken.last].end
        product = math.prod(each.confidence for each in transcript.tokens[spoken.first : spoken.last + 1])
        assert word.confidence == pytest.approx(product)


def test_tokens_with_start_times_leave_pauses() -> None:
    tokenizer = WordTokenizer(["the", "cat"])
    hypothesis = Hypothesis(tokenizer.encode("the cat"), [-0.1, -0.2], [10.0, 30.0], [5.0, 20.0])
    words = time_hypothesis(hypothesis, tokenizer, 0.03, offset=1.0, duration=0.8).words
    times = [(word.text, round(word.start, 6), round(word.end, 6)) for word in words]
    assert times == [("the", 1.15, 1.3), ("cat", 1.6, 1.8)]


def test_no_time_lies_outside_the_stretch() -> None:
    tokenizer = TOKENIZERS[0]
    transcript = time_hypothesis(
        hypothesis_of(tokenizer.encode("a dog")), tokenizer, 0.04, 5.0, duration=0.25
    )
    assert [round(token.end, 6) for token in transcript.tokens] == [5.08, 5.16, 5.24, 5.25, 5.25]
    assert transcript.words[-1].end == 5.25


def test_stray_spaces_are_not_in_the_text() -> None:
    tokenizer = TOKENIZERS[0]
    ids = tokenizer.encode(" a  dog ")
    transcript = time_hypothesis(hypothesis_of(ids), tokenizer, 0.04, 0.0, 10.0)
    assert transcript.text == "a dog"
    assert [word.text for word in transcript.words] == ["a", "dog"]
    assert len(transcript.tokens) == len(ids)


def test_an_empty_transcript() -> None:
    assert time_hypothesis(Hypothesis([], [], []), TOKENIZERS[0], 0.04, 3.0, 1.0) == Transcript("", [], [])


def test_chinese_characters_are_words() -> None:
    tokenizer = TOKENIZERS[0]
    transcript = time_hypothesis(hypothesis_of(tokenizer.encode("今天天气")), tokenizer, 0.08, 0.0, 10.0)
    assert transcript.text == "今天天气"
    assert [word.text for word in transcript.words] == list("今天天气")


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda each: each.kind)
@given(data=st.data())
def test_any_hypothesis_has_times_in_order_within_the_stretch(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(UNKNOWN, tokenizer.size - 1), max_size=12))
    steps = data.draw(st.lists(st.floats(0.0, 9.0), min_size=len(ids), max_size=len(ids)))
    ends = [sum(steps[: index + 1]) for index in range(len(ids))]
    offset, duration = data.draw(st.floats(0.0, 100.0)), data.draw(st.floats(0.1, 3.0))
    transcript = time_hypothesis(Hypothesis(ids, [-0.5] * len(ids), ends), tokenizer, 0.04, offset, duration)
    assert_in_order(transcript.tokens, offset, offset + duration)
    assert_in_order(transcript.words, offset, offset + duration)
    spoken = "".join(word.text for word in transcript.words)
    assert spoken == "".join(transcript.text.split())
    assert spoken == "".join("".join(token.text for token in transcript.tokens).split())


def assert_in_order(parts: list[TimedText], start: float, end: float) -> None:
    times = [time for part in parts for time in (part.start, part.end)]
    assert all(start <= time <= end for time in times)
    assert all(part.start <= part.end for part in parts)
    assert [part.start for part in parts] == sorted(part.start for part in parts)
    assert [part.end for part in parts] == sorted(part.end for part in parts)
    assert all(0.0 <= part.confidence <= 1.0 for part in parts)


def test_stretches_are_joined_and_empty_ones_leave_no_space() -> None:
    tokenizer = TOKENIZERS[0]
    output = [
        time_hypothesis(hypothesis_of(tokenizer.encode(text)), tokenizer, 0.04, offset, 5.0)
        for text, offset in (("a dog", 0.0), ("", 5.0), ("now", 10.0))
    ]
    joined = join_transcripts(output, " ")
    assert joined.text == "a dog now"
    assert joined.words == output[0].words + output[2].words
    assert joined.tokens == output[0].tokens + output[2].tokens
    assert join_transcripts([output[0], output[2]], "").text == "a dognow"
    assert join_transcripts([], " ") == Transcript("", [], [], no_speech=1.0)


def test_json_holds_all_of_it() -> None:
    tokenizer = TOKENIZERS[0]
    transcript = time_hypothesis(hypothesis_of(tokenizer.encode("今天 a dog")), tokenizer, 0.04, 0.0, 5.0)
    text = transcript.to_json()
    assert "今" in text
    assert "\n" not in text
    values = json.loads(text)
    assert values["text"] == "今天 a dog"
    assert [TimedText(**word) for word in values["words"]] == transcript.words
    assert [TimedText(**token) for token in values["tokens"]] == transcript.tokens
