"""The search of a CTC head through a decoding graph: words of a lexicon, with what an n-gram model asks for them.

Miao et al., "EESEN" (2015), section 3, whose token transducer lets equal tokens follow each other without a blank;
ours does not. The lexicon is the student's tokenizer: every word of the language model is spelled in its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from retort.decoding.graph_search import GraphHypothesis, GraphSearch
from retort.decoding.greedy import Hypothesis, ctc_greedy
from retort.decoding.options import DecodingOptions
from retort.decoding.through_graph import FrameScores, ThroughGraph
from retort.decoding.workplace import Workplace
from retort.errors import UserError
from retort.hybrid.fst import from_openfst
from retort.hybrid.grammar import words_of
from retort.hybrid.graph import Graph, build_ctc_graph
from retort.lm.opening import word_arpa
from retort.students.ctc import HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, EOS, PAD, UNKNOWN, Tokenizer

Spellings = dict[str, list[list[str]]]


class CtcGraphSearch(ThroughGraph):
    """From frames to pieces that spell words of the graph.

    A hypothesis has the student's pieces, as that of any other search, each as sure as its frames are in the mean.

    Args:
        student: in eval mode; `student.ctc` is the layer that gives the logits of its tokens, blank among them.
        tokenizer: the student's.
        normalise: of the student's texts; words of the language model are brought into its form.
        options: how to search; `graph` names the language model.
        workplace: where to search, and where the graph is kept.
        before: a search of the same student, whose graph is taken over if it is the same.

    Raises:
        UserError: the student has no CTC head, or one that never learned; the language model is no n-gram model over
            words, or none of its words can be spelled.
    """

    def __init__(
        self,
        student: Student,
        tokenizer: Tokenizer,
        normalise: Normaliser,
        options: DecodingOptions,
        workplace: Workplace,
        before: CtcGraphSearch | None = None,
    ) -> None:
        self.student = _with_ctc(student)
        if before is not None and before.options.graph == options.graph:
            graph, arcs = before.paths.graph, before.parameters["graph"]
        else:
            graph = ctc_graph(options.graph, tokenizer, normalise, workplace)
            arcs = len(from_openfst(graph.fst).sources)
        super().__init__(options, GraphSearch(graph, options.acoustic_scale or 1.0), workplace)
        self.parameters["student"] = sum(each.numel() for each in student.parameters())
        self.parameters["graph"] = arcs
        if left_out := graph.about.left_out:
            total = len(left_out) + len(graph.words)
            some = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            self.notes.append(
                f"{len(left_out):,} of the {total:,} words of {options.graph} are not in the decoding graph, for the "
                f"model has no pieces that spell them: {some}"
            )

    def frame_scores(self, encoded: Encoded) -> FrameScores:
        """Log-probabilities of the tokens; those of pad and EOS, which stand for no sound, are the blank's too."""
        log_probs = ctc_log_probs(self.student, encoded)
        silent = log_probs[..., [BLANK, PAD, EOS]].logsumexp(-1)
        log_probs[..., BLANK] = silent
        values = log_probs.cpu().numpy()
        return FrameScores(values, values)

    def hypothesis(self, found: GraphHypothesis, log_probs: NDArray[np.float32]) -> Hypothesis:
        """The tokens of a path with their times."""
        sure = log_probs[np.arange(len(found.columns)), found.columns]
        ids, scores, starts, ends, frame = [], [], [], [], 0
        for column, run in groupby(found.columns.tolist()):
            end = frame + len(list(run))
            if column != BLANK:
                ids.append(column)
                scores.append(float(sure[frame:end].mean()))
                starts.append(float(frame))
                ends.append(float(end))
            frame = end
        return Hypothesis(ids, scores, ends, starts)

    def heard(self, encoded: Encoded) -> list[list[int]]:
        """Tokens of the head's own best path."""
        return ctc_greedy(self.student, encoded)


def ctc_graph(lm: str, tokenizer: Tokenizer, normalise: Normaliser, workplace: Workplace) -> Graph:
    """The graph of an n-gram model over words, spelled by a tokenizer; built if the workplace has not kept it.

    Args:
        lm: folder of `retort lm train`.

    Raises:
        UserError: it is no such model, or none of its words can be spelled.
    """
    arpa = word_arpa(lm)
    following, first = spellings(words_of(arpa), tokenizer, normalise)
    if not following:
        raise UserError(
            "none of its words can be spelled in the model's pieces",
            where=lm,
            remedy="Give a language model of the same language",
        )
    return build_ctc_graph(
        following,
        arpa,
        tokenizer.symbols,
        first=None if first == following else first,
        blank=BLANK,
        folder=workplace.graphs,
        progress=workplace.progress,
    )


def spellings(
    words: Sequence[str], tokenizer: Tokenizer, normalise: Normaliser
) -> tuple[Spellings, Spellings]:
    """How words are spelled behind another one, and at the start of a sentence; both have the same words.

    A tokenizer may have the space before a word in its first piece, or as a piece of its own, and none of it where a
    sentence begins. A word that is nothing in the student's normal form, or several words, or has unknown pieces, is
    left out.

    Args:
        words: as the language model writes them, by which they are named.
    """
    separator = " " if normalise.config.spaces == "keep" else ""
    following: Spellings = {}
    first: Spellings = {}
    anchors: list[str] = []
    for word in words:
        text = normalise(word)
        alone = tokenizer.encode(text)
        if not text or " " in text or not _spelled(alone):
            continue
        anchors = [*anchors, text] if len(anchors) < _ANCHORS else anchors
        behind = _behind([text, *anchors], text, separator, tokenizer)
        for spelled, ids in ((following, behind or alone), (first, alone)):
            spelled[word] = [[tokenizer.symbols[each] for each in ids]]
    return following, first


_ANCHORS = 3
"""Words behind which a word's spelling is looked for; more than one, since pieces may join where there are no spaces."""


def _behind(anchors: Sequence[str], text: str, separator: str, tokenizer: Tokenizer) -> list[int]:
    """The pieces of a word behind another one that keeps its own; empty if there is no such word."""
    for anchor in anchors:
        before = tokenizer.encode(anchor)
        both = tokenizer.encode(f"{anchor}{separator}{text}")
        behind = both[len(before) :]
        if both[: len(before)] == before and _spelled(behind):
            return behind
    return []


def _spelled(ids: Sequence[int]) -> bool:
    return bool(ids) and min(ids) > UNKNOWN


def _with_ctc(student: Student) -> HasCtc:
    if not isinstance(getattr(student, "ctc", None), nn.Linear):
        raise UserError(
            "the model has no CTC head, and nothing else of it can be heard through a graph",
            remedy="Leave --graph out",
        )
    if student.loss_weights.get("ctc") == 0.0:
        raise UserError(
            "the model's CTC head never learned (student.ctc_weight is 0)", remedy="Leave --graph out"
        )
    return cast(HasCtc, student)
