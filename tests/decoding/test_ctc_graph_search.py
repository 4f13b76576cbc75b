"""A CTC head through lexicon and n-gram, against enumeration of sentences and their paths."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_graphs
from retort.audio.fbank import FbankConfig
from retort.common.errors import BadUtterance, UserError
from retort.config.schema import NormaliserConfig
from retort.decoding.factory import open_search
from retort.decoding.graph_search import CtcGraphSearch, spellings
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import time_candidates
from retort.graph.pool import DecoderPool
from retort.graph.search import GraphSearch
from retort.lm.factory import word_arpa
from retort.students.cif import CifStudent, CifStudentConfig
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, EOS, PAD, BpeTokenizer, CharacterTokenizer, Tokenizer, WordTokenizer
from tiny_lms import save_ngram
from tiny_students import DECODER, ENCODER, FRONTEND, unscored

pytest.importorskip("kaldi_decoder")
pytest.importorskip("kaldilm")

UPPER = Normaliser(NormaliserConfig(case="upper"))
CHARACTERS = CharacterTokenizer(list("▁ABDE"))
TEXTS = ["bad dad", "a bad dad", "dad", "add a bee", "a bad bee", "dad dad", "a dad zoo"]
"""`zoo` has letters that the student does not know."""


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    save_ngram(folder, WordTokenizer.train(TEXTS, 100), TEXTS, order=2)
    return str(folder)


def hearing(logits: np.ndarray, size: int = CHARACTERS.size) -> tuple[CifStudent, Encoded]:
    """A student whose CTC head gives these logits `(B, T, V)`, and what its encoder says then."""
    config = CifStudentConfig(frontend=FRONTEND, encoder=replace(ENCODER, dim=16), decoder=DECODER)
    student = build_student(config, size, 20).eval()
    assert isinstance(student, CifStudent)
    hidden = np.zeros((*logits.shape[:2], 16), np.float32)
    hidden[..., : logits.shape[2]] = logits
    with torch.no_grad():
        student.ctc.weight.copy_(torch.eye(16)[:size])
        student.ctc.bias.zero_()
    lengths = torch.full((len(logits),), logits.shape[1])
    return student, Encoded(torch.from_numpy(hidden), lengths)


def random_logits(batch: int, frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (batch, frames, CHARACTERS.size)).astype(np.float32)


def searching(
    student: CifStudent, options: DecodingOptions, pool: DecoderPool | None = None
) -> CtcGraphSearch:
    found = open_search(student, CHARACTERS, UPPER, options, pool=pool)
    assert isinstance(found, CtcGraphSearch)
    # Wide, so that nothing but the sum of costs decides.
    found.paths = GraphSearch(found.paths.graph, found.paths.acoustic_scale, 1e4, 10**6, 1e3)
    return found


def saying(text: str, frames: int = 1) -> np.ndarray:
    """Logits `(1, T, V)` that leave no doubt of a text with a blank around every token."""
    ids = [BLANK, *(each for token in CHARACTERS.encode(text) for each in (*[token] * frames, BLANK))]
    logits = np.full((1, len(ids), CHARACTERS.size), -30.0, np.float32)
    logits[0, np.arange(len(ids)), ids] = 30.0
    return logits


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_the_best_sentence_by_enumeration(lm: str, scale: float) -> None:
    student, encoded = hearing(random_logits(3, 8, seed=2))
    search = searching(student, DecodingOptions(beam=3, graph=lm, acoustic_scale=scale))
    words = search.paths.graph.words
    assert words == [word for word in words if word != "zoo"]
    ngrams = tiny_graphs.read_ngrams(word_arpa(lm))
    first = {word: [[*word.upper()]] for word in words}
    both = {f"^{word}": spelled for word, spelled in first.items()}
    both |= {word: [["▁", *each] for each in spelled] for word, spelled in first.items()}
    log_probs = torch.from_numpy(random_logits(3, 8, seed=2)).double().log_softmax(-1)
    silent = log_probs[..., [BLANK, PAD, EOS]].exp().sum(-1).log()
    log_probs[..., BLANK] = silent
    symbols = CHARACTERS.symbols
    for row, found in enumerate(search(encoded)):
        assert not isinstance(found, BadUtterance)
        scores = scale * log_probs[row].numpy()
        costs = {
            output: tiny_graphs.sentence_cost(ngrams, output)
            + tiny_graphs.ctc_cost([f"^{word}" for word in output[:1]] + list(output[1:]), both, symbols, scores)
            for output in tiny_graphs.sentences(words, 3)
        }
        ranked = sorted(costs, key=costs.__getitem__)[:3]
        assert [CHARACTERS.decode(each.ids) for each in found] == [
            " ".join(output).upper() for output in ranked
        ]
        assert [-each.score for each in found] == pytest.approx([costs[output] for output in ranked], abs=2e-3)


def test_a_batch_is_decoded_as_single_utterances(lm: str) -> None:
    logits = random_logits(4, 12, seed=5)
    student, encoded = hearing(logits)
    lengths = torch.tensor([12, 5, 9, 7])
    search = searching(student, DecodingOptions(beam=2, graph=lm))
    together = search(Encoded(encoded.hidden, lengths))
    for row, length in enumerate(lengths.tolist()):
        alone = search(Encoded(encoded.hidden[row : row + 1, :length], lengths[row : row + 1]))[0]
        found = together[row]
        assert isinstance(found, list)
        assert isinstance(alone, list)
        assert [each.ids for each in found] == [each.ids for each in alone]
        assert [each.score for each in found] == pytest.approx([each.score for each in alone], abs=1e-4)
    joined = search.batches(
        [Encoded(encoded.hidden[:3], lengths[:3]), Encoded(encoded.hidden[3:], lengths[3:])]
    )
    assert [len(each) for each in joined] == [3, 1]
    assert joined[1][0] == together[3]


def test_several_processes_give_the_same_result(lm: str, tmp_path: Path) -> None:
    student, encoded = hearing(random_logits(4, 10, seed=7))
    options = DecodingOptions(beam=2, graph=lm)
    expected = open_search(student, CHARACTERS, UPPER, options)(encoded)
    with DecoderPool(2, tmp_path) as pool:
        search = open_search(student, CHARACTERS, UPPER, options, pool=pool)
        assert search.workers == 2
        search.prepare(4)
        assert search(encoded) == expected


def test_tokens_have_the_times_of_their_frames(lm: str) -> None:
    student, encoded = hearing(saying("BAD DAD", frames=2))
    search = searching(student, DecodingOptions(graph=lm))
    (found,) = search(encoded)
    assert isinstance(found, list)
    hypothesis = found[0]
    assert CHARACTERS.decode(hypothesis.ids) == "BAD DAD"
    assert hypothesis.starts == [1.0, 4.0, 7.0, 10.0, 13.0, 16.0, 19.0]
    assert hypothesis.ends == [start + 2 for start in hypothesis.starts]
    assert all(-1e-3 < each <= 0 for each in hypothesis.log_probs)
    assert search.ctc_hypotheses(encoded) == [CHARACTERS.encode("BAD DAD")]


def test_the_language_model_corrects_recognition_errors(lm: str) -> None:
    logits = saying("BAD DAB")
    logits[0, :, :] /= 10.0
    student, encoded = hearing(logits)
    assert CHARACTERS.decode(searching(student, DecodingOptions(graph=lm)).ctc_hypotheses(encoded)[0]) == "BAD DAB"
    (found,) = searching(student, DecodingOptions(graph=lm))(encoded)
    assert isinstance(found, list)
    assert CHARACTERS.decode(found[0].ids) == "BAD DAD"


def test_the_end_symbol_is_silence(lm: str) -> None:
    """A head that emits EOS after the last token, as faithful ones do, and between two equal ones."""
    logits = saying("ADD")
    logits[0, [-1, 4], BLANK] = -30.0
    logits[0, [-1, 4], EOS] = 30.0
    student, encoded = hearing(logits)
    (found,) = searching(student, DecodingOptions(graph=lm))(encoded)
    assert isinstance(found, list)
    assert found[0].ids == CHARACTERS.encode("ADD")
    assert found[0].score > -20.0


def test_nothing_but_silence_is_no_word(lm: str) -> None:
    student, encoded = hearing(saying(""))
    (found,) = searching(student, DecodingOptions(graph=lm))(encoded)
    assert isinstance(found, list)
    assert found[0].ids == []


def test_words_that_cannot_be_spelled_are_reported(lm: str) -> None:
    student, _ = hearing(random_logits(1, 3, 0))
    search = searching(student, DecodingOptions(graph=lm))
    assert search.paths.graph.about.left_out == ["zoo"]
    (note,) = search.notes
    assert note.startswith("1 of the 6 words of ")
    assert note.endswith(": zoo")
    assert search.parameters["graph"] > 20
    assert search.paths.acoustic_scale == 1.0


def test_the_graph_is_built_once(lm: str, tmp_path: Path) -> None:
    student, encoded = hearing(saying("A BAD DAD"))
    output: list[str] = []
    pool = DecoderPool(1, tmp_path / "graphs", lambda stage, *_: output.append(stage))
    first = open_search(student, CHARACTERS, UPPER, DecodingOptions(graph=lm), pool=pool)
    assert set(output) == {"decoding graph"}
    output.clear()
    scaled = DecodingOptions(graph=lm, acoustic_scale=0.5)
    for before in (None, first):
        again = open_search(student, CHARACTERS, UPPER, scaled, before, pool=pool)
        assert isinstance(again, CtcGraphSearch)
        assert again.parameters == first.parameters
        assert again.paths.acoustic_scale == 0.5
        assert unscored(again(encoded)[0][0]) == unscored(first(encoded)[0][0])  # type: ignore[index]
    assert output == []
    (folder,) = (tmp_path / "graphs").iterdir()
    assert folder.name == again.paths.graph.about.key
    assert again.paths.graph is first.paths.graph  # type: ignore[attr-defined]


class TestSpellings:
    def symbols(self, tokenizer: Tokenizer, text: str) -> list[list[str]]:
        return [[tokenizer.symbols[each] for each in tokenizer.encode(text)]]

    def test_characters(self) -> None:
        following, first = spellings(["bad", "Dad!", "zoo", "--", "a-b"], CHARACTERS, UPPER)
        assert first == {"bad": [["B", "A", "D"]], "Dad!": [["D", "A", "D"]]}
        assert following == {"bad": [["▁", "B", "A", "D"]], "Dad!": [["▁", "D", "A", "D"]]}

    def test_pieces(self) -> None:
        sentences = ["the cat sat on the mat", "a dog ran over the hill", "the moon is over the hill"]
        tokenizer = BpeTokenizer.train(sentences, 40)
        words = sorted({word for each in sentences for word in each.split()})
        following, first = spellings([*words, "quiz"], tokenizer, Normaliser(NormaliserConfig(case="lower")))
        assert following == first == {word: self.symbols(tokenizer, word) for word in words}

    def test_no_spaces_between_words(self) -> None:
        """Mandarin: a word is what the language model calls so, and nothing is between two of them."""
        normalise = Normaliser(NormaliserConfig(spaces="drop"))
        tokenizer = CharacterTokenizer(list("你好吗我很"))
        following, first = spellings(["你", "你好", "很好", "他"], tokenizer, normalise)
        assert following == first == {"你": [["你"]], "你好": [["你", "好"]], "很好": [["很", "好"]]}
        pieces = BpeTokenizer.train(["你好吗", "我很好", "你好", "很好很好"], 16)
        following, first = spellings(["你好", "很好"], pieces, normalise)
        for word in ("你好", "很好"):
            assert first[word] == self.symbols(pieces, word)
            assert "".join(following[word][0]) == word, "no space inside a sentence"


class TestRefusals:
    @pytest.fixture
    def student(self) -> CifStudent:
        return hearing(random_logits(1, 3, 0))[0]

    def refused(self, student: object, options: DecodingOptions, reason: str) -> None:
        with pytest.raises(UserError, match=reason) as caught:
            open_search(student, CHARACTERS, UPPER, options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    def test_a_head_that_never_learned(self, student: CifStudent, lm: str) -> None:
        student.config = replace(student.config, ctc_weight=0.0)
        self.refused(student, DecodingOptions(graph=lm), "was not trained")

    def test_no_head(self, student: CifStudent, lm: str) -> None:
        del student.ctc
        self.refused(student, DecodingOptions(graph=lm), "no CTC head")

    def test_no_words(self, student: CifStudent, tmp_path: Path) -> None:
        save_ngram(tmp_path / "letters", CharacterTokenizer.train(TEXTS), TEXTS)
        self.refused(student, DecodingOptions(graph=str(tmp_path / "letters")), "ngram, over characters")
        self.refused(student, DecodingOptions(graph=str(tmp_path)), "no n-gram model here")
        save_ngram(tmp_path / "other", WordTokenizer.train(["zoo quiz"], 9), ["zoo quiz"], 1)
        self.refused(student, DecodingOptions(graph=str(tmp_path / "other")), "none of its words can be")

    def test_a_scale_without_a_graph(self, student: CifStudent) -> None:
        self.refused(student, DecodingOptions(acoustic_scale=0.5), "there is no decoding graph")

    def test_another_language_model(self, lm: str) -> None:
        for more in ({"lm": "x", "lm_weight": 0.1}, {"rescore": "x", "beam": 2}):
            with pytest.raises(UserError, match="cannot be combined"):
                DecodingOptions(graph=lm, **more)  # type: ignore[arg-type]


def test_a_recogniser_reads_through_it(lm: str, tmp_path: Path) -> None:
    """Times, texts and n-best lists as of any other search."""
    student, encoded = hearing(saying("A BAD DAD"))
    recogniser = Recogniser(student, CHARACTERS, FbankConfig(bins=20), NormaliserConfig(case="upper"))
    recogniser.use_pool(DecoderPool(graphs=tmp_path))
    options = DecodingOptions(beam=4, nbest=3, graph=lm)
    (found,) = recogniser.opened(options)(encoded)
    assert isinstance(found, list)
    readings = time_candidates(found, options.nbest, CHARACTERS, recogniser.frame_seconds, 1.0, 60.0)
    assert readings[0].transcript.text == "A BAD DAD"
    assert [word.text for word in readings[0].transcript.words] == ["A", "BAD", "DAD"]
    times = [time for word in readings[0].transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] == pytest.approx(1.0 + recogniser.frame_seconds)
    assert all(0.9 < word.confidence <= 1.0 for word in readings[0].transcript.words)
    assert len({each.transcript.text for each in readings}) == len(readings)
    assert not math.isnan(readings[0].score)
