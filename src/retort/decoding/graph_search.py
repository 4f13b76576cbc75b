"""Searches of a decoding graph with frame scores of a student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retort.common.errors import BadUtterance, UserError
from retort.decoding.greedy import ctc_greedy
from retort.decoding.hypothesis import Hypothesis, NBest
from retort.decoding.options import DecodingOptions
from retort.decoding.search import Search
from retort.graph.build import Graph, build_ctc_graph
from retort.graph.fst import from_openfst
from retort.graph.lexicon import words_of
from retort.graph.pool import DecoderPool
from retort.graph.search import GraphHypothesis, GraphSearch
from retort.lm.factory import word_arpa
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.hybrid import HybridStudent
from retort.students.student import Encoded, Student
from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, EOS, PAD, SPECIAL, UNKNOWN, Tokenizer, WordTokenizer


class FrameScores(NamedTuple):
    """Frame scores of a batch, on the CPU.

    Attributes:
        scores, log_probs: `(B, T, S)` float32: the scores that the graph search sums, and log-probabilities
            for confidences.
    """

    scores: NDArray[np.float32]
    log_probs: NDArray[np.float32]


class FrameSearch(Search):
    """Base class of graph searches.

    `options.beam` is the length of the n-best list: for 1 only the best path is searched, for more a lattice
    is generated. The pruning beam is that of the graph search.

    Args:
        options: decoding options.
        paths: graph search with its scale.
        pool: processes that search.
    """

    def __init__(self, options: DecodingOptions, paths: GraphSearch, pool: DecoderPool) -> None:
        super().__init__(options)
        self.paths, self.pool = paths, pool
        self.workers = pool.jobs

    @abstractmethod
    def frame_scores(self, encoded: Encoded) -> FrameScores:
        """Scores of all frames, including padding."""

    @abstractmethod
    def hypothesis(self, found: GraphHypothesis, log_probs: NDArray[np.float32]) -> Hypothesis:
        """Token ids and times of a path.

        Args:
            log_probs: `(T, S)` of the utterance.
        """

    def __call__(self, encoded: Encoded) -> Sequence[NBest]:
        """N-best list of each utterance, or the reason why there is none."""
        return self.batches([encoded])[0]

    @torch.inference_mode()
    def batches(self, encoded: Sequence[Encoded]) -> list[Sequence[NBest]]:
        """N-best lists of several batches, whose utterances are searched in parallel."""
        utterances = []
        for each in encoded:
            made = self.frame_scores(each)
            for row, length in enumerate(each.lengths.tolist()):
                utterances.append(FrameScores(made.scores[row, :length], made.log_probs[row, :length]))
        found = self.pool.decode(self.paths, [each.scores for each in utterances], self.options.beam)
        lists = iter([self._candidates(*each) for each in zip(found, utterances)])
        return [[next(lists) for _ in range(len(each.lengths))] for each in encoded]

    def prepare(self, utterances: int) -> None:
        """Start the processes."""
        self.pool.prepare(self.paths, utterances)

    def _candidates(self, found: list[GraphHypothesis] | BadUtterance, made: FrameScores) -> NBest:
        if isinstance(found, BadUtterance):
            return found
        return [replace(self.hypothesis(each, made.log_probs), score=-each.cost) for each in found]


Spellings = dict[str, list[list[str]]]


class CtcGraphSearch(FrameSearch):
    """Search of a TLG graph with the CTC head of a student.

    Hypotheses are sequences of the student's tokens; the confidence of a token is the mean over its frames.

    Args:
        student: student in eval mode; `student.ctc` is the layer that gives the logits.
        tokenizer: the student's.
        normalise: the student's text normaliser, applied to the words of the language model.
        options: decoding options; `graph` is the language model.
        pool: processes that search, and the folder of graphs.
        before: an earlier search of the same student; its graph is reused if it is the same one.

    Raises:
        UserError: the student has no trained CTC head, the language model is not a word n-gram model, or none
            of its words can be spelled.
    """

    def __init__(
        self,
        student: Student,
        tokenizer: Tokenizer,
        normalise: Normaliser,
        options: DecodingOptions,
        pool: DecoderPool,
        before: CtcGraphSearch | None = None,
    ) -> None:
        self.student = _with_ctc(student)
        if before is not None and before.options.graph == options.graph:
            graph, arcs = before.paths.graph, before.parameters["graph"]
        else:
            graph = ctc_graph(options.graph, tokenizer, normalise, pool)
            arcs = len(from_openfst(graph.fst).sources)
        super().__init__(options, GraphSearch(graph, options.acoustic_scale or 1.0), pool)
        self.parameters["student"] = sum(each.numel() for each in student.parameters())
        self.parameters["graph"] = arcs
        if left_out := graph.about.left_out:
            total = len(left_out) + len(graph.words)
            some = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            self.notes.append(
                f"{len(left_out):,} of the {total:,} words of {options.graph} are not in the decoding graph, because the "
                f"model's tokens cannot spell them: {some}"
            )

    def frame_scores(self, encoded: Encoded) -> FrameScores:
        """Log-probabilities of the tokens; those of pad and EOS are added to the blank."""
        log_probs = ctc_log_probs(self.student, encoded)
        blank = log_probs[..., [BLANK, PAD, EOS]].logsumexp(-1)
        log_probs[..., BLANK] = blank
        values = log_probs.cpu().numpy()
        return FrameScores(values, values)

    def hypothesis(self, found: GraphHypothesis, log_probs: NDArray[np.float32]) -> Hypothesis:
        """Token ids and times of a path."""
        scores_of_frames = log_probs[np.arange(len(found.columns)), found.columns]
        ids, scores, starts, ends, frame = [], [], [], [], 0
        for column, run in groupby(found.columns.tolist()):
            end = frame + len(list(run))
            if column != BLANK:
                ids.append(column)
                scores.append(float(scores_of_frames[frame:end].mean()))
                starts.append(float(frame))
                ends.append(float(end))
            frame = end
        return Hypothesis(ids, scores, ends, starts)

    def ctc_hypotheses(self, encoded: Encoded) -> list[list[int]]:
        """Token ids of the CTC head's best path."""
        return ctc_greedy(self.student, encoded)


def ctc_graph(lm: str, tokenizer: Tokenizer, normalise: Normaliser, pool: DecoderPool) -> Graph:
    """The TLG graph of a word n-gram model, spelled by a tokenizer; built unless the pool's folder has it.

    Args:
        lm: folder of `retort lm train`.

    Raises:
        UserError: it is not such a model, or none of its words can be spelled.
    """
    arpa = word_arpa(lm)
    after_word, at_start = spellings(words_of(arpa), tokenizer, normalise)
    if not after_word:
        raise UserError(
            "none of its words can be spelled in the model's tokens",
            where=lm,
            remedy="Give a language model of the same language",
        )
    return build_ctc_graph(
        after_word,
        arpa,
        tokenizer.symbols,
        first=None if at_start == after_word else at_start,
        blank=BLANK,
        folder=pool.graphs,
        progress=pool.progress,
    )


def spellings(
    words: Sequence[str], tokenizer: Tokenizer, normalise: Normaliser
) -> tuple[Spellings, Spellings]:
    """Spellings of words after another word and at the start of a sentence; both have the same words.

    A tokenizer may attach the space before a word to its first token or have a token for it, and neither
    occurs at the start of a sentence. A word whose normal form is empty or several words, or contains unknown
    tokens, is left out.

    Args:
        words: words in the form of the language model.
    """
    separator = " " if normalise.config.spaces == "keep" else ""
    after_word: Spellings = {}
    at_start: Spellings = {}
    anchors: list[str] = []
    for word in words:
        text = normalise(word)
        first_ids = tokenizer.encode(text)
        if not text or " " in text or not _spelled(first_ids):
            continue
        anchors = [*anchors, text] if len(anchors) < _ANCHORS else anchors
        inside = _spelling_after([text, *anchors], text, separator, tokenizer)
        for spelled, ids in ((after_word, inside or first_ids), (at_start, first_ids)):
            spelled[word] = [[tokenizer.symbols[each] for each in ids]]
    return after_word, at_start


_ANCHORS = 3
"""Number of words after which a spelling is tried; more than one, since tokens may join across words without spaces."""


def _spelling_after(anchors: Sequence[str], text: str, separator: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a word after an anchor whose own tokens do not change; empty if there is no such anchor."""
    for anchor in anchors:
        before = tokenizer.encode(anchor)
        both = tokenizer.encode(f"{anchor}{separator}{text}")
        word = both[len(before) :]
        if both[: len(before)] == before and _spelled(word):
            return word
    return []


def _spelled(ids: Sequence[int]) -> bool:
    return bool(ids) and min(ids) > UNKNOWN


def _with_ctc(student: Student) -> HasCtc:
    if not isinstance(getattr(student, "ctc", None), nn.Linear):
        raise UserError(
            "the model has no CTC head, which decoding with a graph requires",
            remedy="Leave --graph out",
        )
    if student.loss_weights.get("ctc") == 0.0:
        raise UserError(
            "the model's CTC head was not trained (student.ctc_weight is 0)", remedy="Leave --graph out"
        )
    return cast(HasCtc, student)


@dataclass(frozen=True)
class ScaledGraph:
    """The decoding graph of a hybrid student.

    Attributes:
        graph: the decoding graph.
        acoustic_scale: default scale of the student's scores.
    """

    graph: Graph
    acoustic_scale: float


class HybridSearch(FrameSearch):
    """Search of an HCLG graph with the senone scores of a hybrid student.

    Args:
        student: student in eval mode.
        graph: the decoding graph.
        options: decoding options, without language models.
        pool: processes that search.
    """

    def __init__(
        self, student: HybridStudent, graph: ScaledGraph, options: DecodingOptions, pool: DecoderPool
    ) -> None:
        scale = options.acoustic_scale or graph.acoustic_scale
        super().__init__(options, GraphSearch(graph.graph, scale), pool)
        self.student = student
        self.parameters["student"] = sum(each.numel() for each in student.parameters())

    def frame_scores(self, encoded: Encoded) -> FrameScores:
        """Log posteriors minus log priors of the senones."""
        log_posteriors = self.student.log_posteriors(encoded)
        scores = log_posteriors - self.student.log_priors
        return FrameScores(scores.cpu().numpy(), log_posteriors.cpu().numpy())

    def hypothesis(self, found: GraphHypothesis, log_probs: NDArray[np.float32]) -> Hypothesis:
        """Words with times; the confidence of a word is the mean over its frames."""
        scores_of_frames = log_probs[np.arange(len(found.columns)), found.columns]
        spans = [(word.start, word.start + word.frames) for word in found.words]
        return Hypothesis(
            [len(SPECIAL) + number for number in found.numbers],
            [float(scores_of_frames[start:end].mean()) for start, end in spans],
            [float(end) for _, end in spans],
            [float(start) for start, _ in spans],
        )


def graph_words(graph: Graph) -> WordTokenizer:
    """A tokenizer of the words of a graph: their numbers, after the special ids."""
    return WordTokenizer(graph.words)
