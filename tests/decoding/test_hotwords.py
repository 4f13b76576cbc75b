"""Hotwords: the scorer against a slow reference, tokenisations, lists, and every search of token students."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.audio.fbank import FbankConfig
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.decoding.hotwords import (
    Hotword,
    HotwordScorer,
    TokenTexts,
    open_hotwords,
    parse_hotwords,
    read_hotwords,
)
from retort.decoding.options import DecodingOptions, make_options, options_to_dict, read_options
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import hypothesis_text
from retort.students.factory import build_student
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, SPECIAL, UNKNOWN, BpeTokenizer, CharacterTokenizer, Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer, special_id
from tiny_students import DECODER, ENCODER, FRONTEND, student_config
from tiny_whispers import tiny_tokenizer, tiny_whisper_folder, tiny_whisper_recogniser

Phrases = Mapping[tuple[int, ...], tuple[float, bool]]
VOCABULARY = 9
STARTS = torch.tensor([False] * 4 + [True, True, False, False, False])
OPEN = {8}
ANYWHERE = {7}


def reference(tokens: Sequence[int], phrases: Phrases, starts: Sequence[bool], open: Collection[int]) -> float:
    """At every position at which a word starts: the largest reward of a phrase that is there, as whole words."""
    total = 0.0
    for first, token in enumerate(tokens):
        begins = first == 0 or starts[token] or tokens[first - 1] in open
        rewards = [0.0]
        for phrase, (reward, bounded) in phrases.items():
            end = first + len(phrase)
            there = tuple(tokens[first:end]) == phrase and (begins or phrase[0] in ANYWHERE)
            ends = end >= len(tokens) or starts[tokens[end]] or tokens[end - 1] in open
            if there and (ends or not bounded):
                rewards.append(reward)
        total += max(rewards)
    return total


def random_phrases(draw: random.Random) -> dict[tuple[int, ...], tuple[float, bool]]:
    found = {}
    for _ in range(draw.randint(1, 6)):
        phrase = tuple(draw.randint(4, VOCABULARY - 1) for _ in range(draw.randint(1, 4)))
        found[phrase] = draw.choice([0.5, 1.0, 3.0]) * len(phrase), draw.random() < 0.7
    return found


@pytest.mark.parametrize("seed", range(200))
def test_the_sum_is_that_of_whole_phrases(seed: int) -> None:
    draw = random.Random(seed)
    phrases = random_phrases(draw)
    scorer = HotwordScorer(phrases, STARTS, OPEN, ANYWHERE)
    tokens: list[int] = []
    while len(tokens) < 12:
        tokens += draw.choice(list(phrases)) if draw.random() < 0.6 else [draw.randint(4, VOCABULARY - 1)]
    scores, state = scorer.step(scorer.start(1, torch.device("cpu")), torch.tensor([EOS]))
    total = 0.0
    for token in [*tokens, EOS]:
        assert scores.isfinite().all()
        total += float(scores[0, token])
        scores, state = scorer.step(state, torch.tensor([token]))
    assert total == pytest.approx(reference(tokens, phrases, STARTS.tolist(), OPEN))
    assert not scores.any()  # after EOS


def test_rows_are_independent() -> None:
    scorer = HotwordScorer({(4, 6): (2.0, True), (5,): (1.0, True)}, STARTS, OPEN)
    start = scorer.step(scorer.start(2, torch.device("cpu")), torch.tensor([EOS, EOS]))[1]
    both, state = scorer.step(start, torch.tensor([4, 5]))
    for row, token in enumerate((4, 5)):
        alone, own = scorer.step(scorer.select(start, torch.tensor([row])), torch.tensor([token]))
        assert torch.equal(alone[0], both[row])
        assert scorer.join([own, state]).tolist()[0] == state[row]
    assert torch.equal(scorer.step(scorer.select(state, torch.tensor([1, 0])), torch.tensor([6, 6]))[0][1],
                       scorer.step(state, torch.tensor([6, 6]))[0][0])  # fmt: skip


def test_a_failed_match_costs_nothing() -> None:
    scorer = HotwordScorer({(4, 6, 6): (3.0, True)}, STARTS)
    score, state = scorer.follow(1, 4)
    assert score == pytest.approx(1.0)
    assert scorer.follow(state, 5)[0] == pytest.approx(-1.0)
    assert scorer.follow(state, 4)[0] == pytest.approx(0.0)
    assert scorer.follow(state, EOS)[0] == pytest.approx(-1.0)


SENTENCES = ["the anna went to new york", "annoying new newt york", "a yorkshire man and his man", "anna anna banana"]


@pytest.fixture(scope="module", params=["bpe", "characters", "whisper", "cut whisper"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bpe":
        return BpeTokenizer.train(SENTENCES, 40)
    if request.param == "characters":
        return CharacterTokenizer.train(SENTENCES)
    backend = tiny_tokenizer()
    # Without the merged pieces, everything is spelled in bytes.
    size = special_id(backend, "<|endoftext|>") if request.param == "whisper" else 256
    return WhisperTokenizer(backend, range(size), "en")


@pytest.mark.parametrize("phrase", ["anna", "new york", "ann", "man"])
def test_tokenisations_spell_the_phrase_as_whole_words(tokenizer: Tokenizer, phrase: str) -> None:
    texts = TokenTexts(tokenizer)
    found = texts.tokenisations(phrase)
    assert tuple(tokenizer.encode(phrase)) in found
    assert [tokenizer.decode(each) for each in found] == [phrase] * len(found)
    rewards = {each: (float(len(phrase)), True) for each in found}
    scorer = HotwordScorer(rewards, texts.starts, texts.open)
    for sentence in SENTENCES:
        state, total = 1, 0.0
        for token in [*tokenizer.encode(sentence), EOS]:
            score, state = scorer.follow(state, token)
            total += score
        count = len(re.findall(rf"\b{phrase}\b", sentence))
        assert total == pytest.approx(len(phrase) * count), sentence


def test_chinese_has_no_spaces() -> None:
    characters = CharacterTokenizer(list("北京上海人"))
    options = DecodingOptions(hotwords=("上海",), hotword_weight=1.0)
    scorer, notes = open_hotwords(options, characters, Normaliser(NormaliserConfig()))
    assert not notes
    state, total = 1, 0.0
    for token in [*characters.encode("北京上海人上海"), EOS]:
        score, state = scorer.follow(state, token)
        total += score
    assert total == pytest.approx(4.0)


def test_what_cannot_be_written_is_a_note() -> None:
    letters = CharacterTokenizer(list("▁abc"))
    options = DecodingOptions(hotwords=("a b", "xyz"))
    _, notes = open_hotwords(options, letters, Normaliser(NormaliserConfig(case="lower")))
    assert len(notes) == 1
    assert "xyz" in notes[0]
    assert UNKNOWN in letters.encode("xyz")


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffAnna\r\n\n  New   York \t 3.5\n", encoding="utf-8")
    expected = [Hotword("Anna"), Hotword("New York", 3.5)]
    assert read_hotwords(str(path)) == expected == parse_hotwords(["Anna", "New York\t3.5"])
    options = make_options({"hotwords": ["Anna", ("New York", 3.5)], "hotword_weight": 1})
    assert read_hotwords(options.hotwords) == expected
    assert options.suffix == "+hotwords"
    assert options.label != make_options({"hotwords": ["Bob"]}).label
    assert make_options({"hotwords": path}).label == "hotwords.names"
    saved = tmp_path / "tuned.json"
    saved.write_text(json.dumps(options_to_dict(options)))
    assert read_options(saved) == options


@pytest.mark.parametrize("lines", [[], [" "], ["a\tmany"], ["a\t-1"], ["a\tnan"], ["\t2"], ["x" * 201], ["a"] * 10_001])
def test_lists_that_cannot_be(lines: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_hotwords(lines)
    assert caught.value.remedy


def test_files_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for path in (tmp_path / "none", tmp_path / "latin", tmp_path):
        with pytest.raises(UserError):
            read_hotwords(str(path))
    for wrong in ({"hotword_weight": 2.0}, {"hotwords": 3}, {"hotwords": [3]}, {"hotwords": ["a"], "graph": "g"}):
        with pytest.raises(UserError):
            make_options(wrong)


LETTERS = CharacterTokenizer(list("▁abcdefgh"))


def recogniser(kind: str, tmp_path: Path) -> tuple[Recogniser, int]:
    """A random recogniser whose beam search has different hypotheses, and the bins of its features."""
    if kind == "whisper":
        made = tiny_whisper_recogniser(tiny_whisper_folder(tmp_path))
        return made, made.features.bins
    torch.manual_seed(8)
    config = student_config(
        kind, frontend=FRONTEND, encoder=replace(ENCODER, layers=2, convolution_norm="layer"), decoder=DECODER
    )
    student: Any = build_student(config, LETTERS.size, 20)
    with torch.no_grad():
        student.ctc.weight.mul_(6.0)
    return Recogniser(student, LETTERS, FbankConfig(bins=20), NormaliserConfig(case="lower")), 20


@pytest.mark.parametrize("kind", ["cif", "ctc", "attention", "transducer", "whisper"])
def test_every_search_prefers_hotwords(kind: str, tmp_path: Path) -> None:
    made, bins = recogniser(kind, tmp_path)
    features = [torch.randn(frames, bins, generator=torch.Generator().manual_seed(frames)) for frames in (90, 35, 61)]

    def texts(options: DecodingOptions) -> list[str]:
        return [hypothesis_text(made.tokenizer, each[0].ids) for each in made.search(features, options)]  # type: ignore[index]

    def count(found: list[str], word: str) -> int:
        return sum(text.split().count(word) for text in found)

    options = DecodingOptions(beam=8, hotwords=("a",), hotword_weight=60.0)
    assert count(texts(options), "a") > count(texts(DecodingOptions(beam=8)), "a")
    for row, each in enumerate(features):
        (alone,) = made.search([each], options)
        together = made.search(features, options)[row]
        assert [one.ids for one in alone] == [one.ids for one in together]  # type: ignore[union-attr]
        assert [one.score for one in alone] == pytest.approx([one.score for one in together], abs=1e-4)  # type: ignore[union-attr]
    # Of no weight, they change nothing; greedy decoding then is a search with a small beam.
    assert texts(DecodingOptions(hotwords=("ab",), hotword_weight=0.0)) == texts(DecodingOptions(beam=4))


def test_special_ids_are_of_no_word() -> None:
    texts = TokenTexts(LETTERS)
    assert not texts.starts[: len(SPECIAL)].any()
    assert texts.open == {len(SPECIAL)}


def test_longer_tokenisations_of_a_phrase_get_no_larger_reward() -> None:
    tokenizer = BpeTokenizer.train(SENTENCES, 40)
    options = DecodingOptions(hotwords=("anna",), hotword_weight=2.0)
    scorer, _ = open_hotwords(options, tokenizer, Normaliser(NormaliserConfig()))
    sums = {}
    for tokens in TokenTexts(tokenizer).tokenisations("anna"):
        scores, state = scorer.step(scorer.start(1, torch.device("cpu")), torch.tensor([EOS]))
        total = 0.0
        for token in [*tokens, EOS]:
            total += float(scores[0, token])
            scores, state = scorer.step(state, torch.tensor([token]))
        sums[tokens] = total
    assert len({len(each) for each in sums}) > 1
    assert list(sums.values()) == pytest.approx([2.0 * min(map(len, sums))] * len(sums))
